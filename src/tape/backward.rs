//! The backward pass: runs the recorded derivatives in reverse, and adds up the gradients that they return.

use super::{Home, Tape, Tensor, sums};
use crate::tensor::Id;

impl Tape {
    /// Records the launches of the gradients of a loss, a tensor of one element.
    ///
    /// # Panics
    /// When the loss has more elements: [`Tape::backward_from`] takes a gradient for them.
    #[track_caller]
    pub fn backward(&self, loss: &Tensor) -> Gradients {
        assert!(loss.elements() == 1, "backward: expected a loss of one element, got {}", loss.shape);
        let [one] = self.labelled("loss", || self.launch(sums::one(), &[], [loss.shape.clone()]));
        self.backward_from(loss, &one)
    }

    /// Records the launches of the gradients of `sum(y * dy)`, where `dy` may be any tensor with the elements
    /// of
    /// `y`, and forgets the forward closures. Every gradient that is used twice is added up here and nowhere
    /// else.
    ///
    /// # Panics
    /// When `dy` has other elements than `y`; and when a derivative returns a gradient of the wrong shape, a
    /// defect of that op.
    #[track_caller]
    pub fn backward_from(&self, y: &Tensor, dy: &Tensor) -> Gradients {
        assert_eq!(y.elements(), dy.elements(), "backward: gradient {} of {}", dy.shape, y.shape);
        let count = self.0.metas.borrow().len();
        let entries = self.0.entries.borrow().len();
        self.0.forward.set(Some(self.0.forward.get().unwrap_or(entries)));
        let mut gradients = Gradients { tape: self.clone(), of: vec![None; count] };
        gradients.of[y.id.0] = Some(dy.clone());
        let nodes = std::mem::take(&mut *self.0.nodes.borrow_mut());
        for node in nodes.into_iter().rev() {
            let dy: Vec<Option<Tensor>> = node.outputs.iter().map(|id| gradients.of[id.0].clone()).collect();
            if dy.iter().any(Option::is_some) {
                self.labelled(&node.label, || {
                    let first = self.0.entries.borrow().len();
                    let returned = (node.derivative)(&dy);
                    gradients.add(&node.label, &node.inputs, returned, first);
                });
            }
        }
        gradients
    }

    /// Makes the launch that writes `gradient` add `sum` to it, if that is one from number `first` on that
    /// can fuse the sum, and nothing has read the gradient yet.
    fn fuse_accumulate(&self, first: usize, sum: &Tensor, gradient: &Tensor) -> bool {
        let mut entries = self.0.entries.borrow_mut();
        let place_in = |ids: &[Id], id| ids.iter().position(|other| *other == id);
        let writers = entries.iter().enumerate().skip(first);
        let mut writers =
            writers.filter_map(|(i, e)| place_in(&e.writes, gradient.id).map(|write| (i, write)));
        let (Some((at, write)), None) = (writers.next(), writers.next()) else { return false };
        // The sum has to be there, and a store may be written by then.
        let late = entries[at..].iter().any(|e| e.writes.contains(&sum.id) || e.reads.contains(&gradient.id));
        let metas = self.0.metas.borrow();
        let temporary = [sum, gradient].iter().all(|t| metas[t.id.0].home == Home::Temporary);
        let fused = entries[at].recorded.info().accumulate.of_write(write);
        let Some(fused) = fused.filter(|_| temporary && !late) else { return false };
        let entry = &mut entries[at];
        entry.recorded = fused;
        entry.reads.push(sum.id);
        true
    }
}

/// Gradients of the tensors that were recorded before a backward pass.
pub struct Gradients {
    tape: Tape,
    of: Vec<Option<Tensor>>,
}

impl Gradients {
    /// The gradient of a tensor that was recorded before `backward`; `None`: nothing depends on it.
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.of.get(tensor.id.0).and_then(Option::as_ref)
    }

    /// Gradients of the variables of a store, with the first element of each, in the order of recording.
    pub fn of_store(&self, store: &str) -> Vec<(usize, Tensor)> {
        let metas = self.tape.0.metas.borrow();
        let of = metas.iter().zip(&self.of).filter_map(|(meta, gradient)| match (&meta.home, gradient) {
            (Home::Stored { store: s, first }, Some(gradient)) if &**s == store => {
                Some((*first, gradient.clone()))
            }
            _ => None,
        });
        of.collect()
    }

    /// Adds the gradients that a derivative returned for its inputs; it recorded the entries from number
    /// `first` on.
    fn add(&mut self, op: &str, inputs: &[Id], returned: Vec<Option<Tensor>>, first: usize) {
        assert_eq!(returned.len(), inputs.len(), "{op}: one gradient for each input");
        let ids: Vec<Option<Id>> = returned.iter().map(|g| g.as_ref().map(|g| g.id)).collect();
        for (id, gradient) in inputs.iter().zip(returned) {
            let Some(gradient) = gradient else { continue };
            let (elements, needed, is_weight) = {
                let meta = &self.tape.0.metas.borrow()[id.0];
                (meta.shape.elements(), meta.needs_grad, meta.home != Home::Temporary)
            };
            assert_eq!(gradient.elements(), elements, "{op}: gradient {}", gradient.shape);
            if !needed {
                continue;
            }
            // Gradients of weights have 32 bits, as weights have.
            let exact = |gradient: Tensor| if is_weight { gradient.exact() } else { gradient };
            let gradient = exact(gradient);
            let total = match self.of[id.0].take() {
                None => gradient,
                Some(sum) => {
                    let once = ids.iter().filter(|other| **other == Some(gradient.id)).count() == 1;
                    if once && self.tape.fuse_accumulate(first, &sum, &gradient) {
                        gradient
                    } else {
                        let (launch, shape) = (sums::accumulate(elements), sum.shape.clone());
                        let [total] = self.tape.launch(launch, &[&sum, &gradient], [shape]);
                        exact(total)
                    }
                }
            };
            self.of[id.0] = Some(total);
        }
    }
}
