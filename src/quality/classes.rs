//! Classes that a classifier finds, against those that were asked for.

/// Counts of images, `[classes, classes]`: a row is the true or asked class, a column the one found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<usize>,
}

impl Confusion {
    /// From labels and the classes found.
    ///
    /// # Panics
    /// If the numbers differ, or a class is not below `classes`.
    #[track_caller]
    pub fn new(labels: &[usize], found: &[usize], classes: usize) -> Self {
        assert_eq!(labels.len(), found.len(), "labels, and classes found");
        let mut counts = vec![0; classes * classes];
        for (&label, &found) in labels.iter().zip(found) {
            assert!(label < classes && found < classes, "class {label} or {found} of {classes}");
            counts[label * classes + found] += 1;
        }
        Confusion { classes, counts }
    }

    /// From labels and a classifier's logits `[n, classes]`: the largest, the first of several.
    ///
    /// # Panics
    /// As [`new`](Self::new), and if an image has a logit that is no number.
    #[track_caller]
    pub fn of_logits(labels: &[usize], logits: &[f32], classes: usize) -> Self {
        assert_eq!(logits.len(), labels.len() * classes, "logits of {} images", labels.len());
        let mut found = Vec::with_capacity(labels.len());
        for (i, logits) in logits.chunks_exact(classes.max(1)).enumerate() {
            assert!(!logits.iter().any(|l| l.is_nan()), "image {i} has a logit that is no number");
            found.push((1..classes).fold(0, |best, k| if logits[k] > logits[best] { k } else { best }));
        }
        Confusion::new(labels, &found, classes)
    }

    /// Images of class `label` that were taken for `found`.
    pub fn count(&self, label: usize, found: usize) -> usize {
        self.counts[label * self.classes + found]
    }

    /// The rows of counts.
    pub fn rows(&self) -> impl Iterator<Item = &[usize]> {
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Share of images whose class was found; NaN of none.
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..self.classes).map(|k| self.count(k, k)).sum();
        right as f64 / self.counts.iter().sum::<usize>() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        let confusion = Confusion::new(&[0, 0, 0, 1, 1], &[0, 0, 1, 1, 2], 3);
        assert_eq!(confusion.rows().flatten().copied().collect::<Vec<_>>(), [2, 1, 0, 0, 1, 1, 0, 0, 0]);
        assert_eq!(confusion.accuracy(), 0.6);
        assert!(Confusion::new(&[], &[], 3).accuracy().is_nan());
    }

    #[test]
    fn the_largest_logit_is_the_class() {
        let logits = [0.0, 2.0, 1.0, /**/ 3.0, 3.0, -1.0, /**/ f32::NEG_INFINITY, -1e30, -9.0];
        let confusion = Confusion::of_logits(&[1, 1, 2], &logits, 3);
        assert_eq!([(1, 1), (1, 0), (2, 2)].map(|(a, b)| confusion.count(a, b)), [1, 1, 1]);
    }

    #[test]
    #[should_panic(expected = "image 1 has a logit that is no number")]
    fn a_broken_classifier_finds_nothing() {
        Confusion::of_logits(&[0, 1], &[0.0, 1.0, f32::NAN, 0.0], 2);
    }
}
