//! The numbers of all parameters of a model, at the precision that they came with.

use std::borrow::Cow;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::Params;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::files::hash_of;

/// Elements that are widened, hashed or copied at a time.
const PIECE: usize = 1 << 22;

/// The parameters of a model, flat in the layout of its [`Params`].
#[derive(Clone, Debug, PartialEq)]
pub enum Flat {
    /// Of 32 bits each.
    F32(Vec<f32>),
    /// Of 16 bits each, as large models are published.
    F16(Vec<f16>),
}

impl From<Vec<f32>> for Flat {
    fn from(numbers: Vec<f32>) -> Flat {
        Flat::F32(numbers)
    }
}

impl Flat {
    /// Numbers in all.
    pub fn elements(&self) -> usize {
        match self {
            Flat::F32(numbers) => numbers.len(),
            Flat::F16(halves) => halves.len(),
        }
    }

    /// As `f32`; 16 bits are widened exactly, into new memory.
    pub fn f32(&self) -> Cow<'_, [f32]> {
        self.part(0..self.elements())
    }

    /// Some of them as `f32`.
    ///
    /// # Panics
    /// When there are not so many.
    #[track_caller]
    pub fn part(&self, range: Range<usize>) -> Cow<'_, [f32]> {
        match self {
            Flat::F32(numbers) => Cow::Borrowed(&numbers[range]),
            Flat::F16(halves) => Cow::Owned(halves[range].to_f32_vec()),
        }
    }

    /// A hash of their bits as `f32` that tells models apart.
    pub(crate) fn fingerprint(&self) -> String {
        let pieces = (0..self.elements()).step_by(PIECE);
        let pieces = pieces.map(|first| self.part(first..self.elements().min(first + PIECE)));
        hash_of(pieces.flat_map(Cow::into_owned))
    }

    /// As `f32`, to be changed.
    pub fn widen(&mut self) -> &mut Vec<f32> {
        if let Flat::F16(halves) = self {
            *self = Flat::F32(halves.to_f32_vec());
        }
        match self {
            Flat::F32(numbers) => numbers,
            Flat::F16(_) => unreachable!("widened above"),
        }
    }

    /// As `f32`.
    pub fn into_f32(mut self) -> Vec<f32> {
        std::mem::take(self.widen())
    }

    /// Some of the parameters that a device has in `buffer`, of the type that `params` are recorded as.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When there are not so many.
    #[track_caller]
    pub fn download(device: &Device, buffer: &Buffer, params: &Params, range: Range<usize>) -> Result<Flat> {
        fn read<T: bytemuck::Pod>(device: &Device, buffer: &Buffer, range: Range<usize>) -> Result<Vec<T>> {
            let mut part = vec![T::zeroed(); range.len()];
            device.read(buffer, range.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut part))?;
            Ok(part)
        }
        Ok(match params.halves {
            true => Flat::F16(read(device, buffer, range)?),
            false => Flat::F32(read(device, buffer, range)?),
        })
    }

    /// Moves the parameters to a device. The CPU device keeps 16 bits as they are, half the memory, as a GPU
    /// with [`Precision::F16`](crate::device::Precision::F16) does, and
    /// `params` are recorded so from then on: what is computed from them is the same to the bit.
    ///
    /// # Errors
    /// When there is not enough memory, or the driver reports an error.
    pub fn upload(self, device: &Device, label: &str, params: &mut Params) -> Result<Buffer> {
        params.halves = matches!(self, Flat::F16(_)) && device.keeps_halves();
        match self {
            Flat::F32(numbers) => moved(device, label, numbers, |piece| Cow::Borrowed(piece)),
            Flat::F16(halves) if params.halves => moved(device, label, halves, |piece| Cow::Borrowed(piece)),
            Flat::F16(halves) => moved(device, label, halves, |piece| Cow::Owned(piece.to_f32_vec())),
        }
    }
}

/// The elements as `converted`, in memory of a device. They are given back piece by piece, from the end,
/// because a large model would not fit twice.
fn moved<T: Clone, U: bytemuck::Pod>(
    device: &Device,
    label: &str,
    mut all: Vec<T>,
    converted: impl Fn(&[T]) -> Cow<'_, [U]>,
) -> Result<Buffer> {
    let buffer = device.alloc(label, all.len() * size_of::<U>())?;
    while let Some(last) = all.len().checked_sub(1) {
        let first = last / PIECE * PIECE;
        device.write(&buffer, first * size_of::<U>(), bytemuck::cast_slice(&converted(&all[first..])))?;
        all.truncate(first);
        all.shrink_to_fit();
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::super::{Conv, STORE, Scope, conv, group_norm, linear};
    use super::*;
    use crate::check::{devices, random};
    use crate::ops::activation::Activation;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::{Tape, Tensor};

    /// Convolutions by Winograd, of few channels, and of an upsampled image; a norm and a linear layer.
    fn network(scope: &Scope, x: &Tensor) -> Tensor {
        let conv = |name: &str, x: &Tensor, form| conv(&scope.sub(name), x, form, None, None);
        let x = conv("first", x, Conv::same(32));
        let x = conv("winograd", &x, Conv::same(48));
        let x = group_norm(&scope.sub("norm"), &x, 4, 1e-5, Activation::Silu);
        let x = conv("up", &x, Conv::upsampled(5));
        linear(&scope.sub("head"), &x, 7)
    }

    /// Twice, from one program: what is kept from run to run must not be missing in the second.
    fn result(device: &Device, flat: &Flat, params: &Rc<RefCell<Params>>) -> Vec<f32> {
        let weights = flat.clone().upload(device, "weights", &mut params.borrow_mut()).unwrap();
        let tape = Tape::new();
        let y = network(&Scope::new(&tape, params), &tape.stored("x", 0, [2, 6, 5, 3]));
        let plan = Plan::new(&tape, &[&y], device);
        let mut program = Program::compile(&plan, device, &[(STORE, &weights)], Sharing::Guarded).unwrap();
        let mut all = Vec::new();
        for seed in 0..2 {
            program.write("x", &random(seed, 180)).unwrap();
            program.run().unwrap();
            all.extend(program.read(&y).unwrap());
        }
        assert!(program.guards_intact().unwrap());
        all
    }

    #[test]
    fn weights_of_16_bits_compute_what_they_compute_widened() {
        let params = Rc::new(RefCell::new(Params::default()));
        let tape = Tape::new();
        network(&Scope::new(&tape, &params), &tape.stored("x", 0, [2, 6, 5, 3]));
        let elements = params.borrow().elements();
        let halves = Flat::F16(random(2, elements).into_iter().map(f16::from_f32).collect());
        for (name, device) in devices() {
            let own = |flat: &Flat| {
                let params = Rc::new(RefCell::new(params.borrow().clone()));
                result(device, flat, &params)
            };
            let wanted = own(&Flat::from(halves.f32().into_owned()));
            assert!(wanted.iter().any(|v| *v != 0.0) && own(&halves) == wanted, "{name}");
        }
    }
}
