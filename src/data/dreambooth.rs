//! Instances of something, whose captions a recipe says, alone or with pictures of their class, which
//! DreamBooth trains on together (Ruiz et al. 2022, arXiv:2208.12242).

use std::sync::Arc;

use super::digest::Digest;
use super::{Captions, Dataset};
use crate::error::Result;

/// Instances, or instances and pictures of their class in turn; all of a kind have the same captions.
pub(crate) struct DreamBooth {
    instances: Arc<dyn Dataset>,
    class: Option<Arc<dyn Dataset>>,
    captions: [Vec<String>; 2],
}

/// Whether a sample of instances and pictures of their class is one of these.
pub(crate) fn is_of_class(sample: u64) -> bool {
    sample % 2 == 1
}

impl DreamBooth {
    /// `captions`: of the instances, and of their class.
    pub(crate) fn new(
        instances: Arc<dyn Dataset>,
        class: Option<Arc<dyn Dataset>>,
        captions: [Vec<String>; 2],
    ) -> Self {
        DreamBooth { instances, class, captions }
    }

    /// The pictures that a number is of, and its number there.
    fn of(&self, index: u64) -> (&Arc<dyn Dataset>, u64) {
        let (data, index) = match &self.class {
            Some(class) if is_of_class(index) => (class, index / 2),
            Some(_) => (&self.instances, index / 2),
            None => (&self.instances, index),
        };
        (data, index % data.len().unwrap_or(u64::MAX))
    }
}

impl Dataset for DreamBooth {
    fn len(&self) -> Option<u64> {
        let instances = self.instances.len()?;
        match &self.class {
            Some(class) => Some(2 * instances.max(class.len()?)),
            None => Some(instances),
        }
    }

    fn shape(&self) -> [usize; 3] {
        self.instances.shape()
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let (data, index) = self.of(index);
        data.read(index, out).map(|_| 0)
    }

    fn read_cropped(&self, index: u64, place: [f32; 2], out: &mut [f32]) -> Result<u32> {
        let (data, index) = self.of(index);
        data.read_cropped(index, place, out).map(|_| 0)
    }

    /// An instance and a picture of its class: each batch has as many of both, as the reference's has.
    fn together(&self) -> u64 {
        if self.class.is_some() { 2 } else { 1 }
    }

    fn captions(&self) -> Result<Option<Captions>> {
        let (captions, mixed) = (self.captions.clone(), self.class.is_some());
        Ok(Some(Captions::made(move |index| captions[usize::from(mixed && is_of_class(index))].clone())))
    }

    fn digest(&self) -> Result<String> {
        let mut digest = Digest::default();
        for data in [Some(&self.instances), self.class.as_ref()].into_iter().flatten() {
            digest.field(data.digest()?.as_bytes());
        }
        Ok(digest.text())
    }

    fn skipped(&self) -> u64 {
        self.instances.skipped() + self.class.as_ref().map_or(0, |class| class.skipped())
    }

    fn warnings(&self) -> Vec<String> {
        let mut all = self.instances.warnings();
        all.extend(self.class.iter().flat_map(|class| class.warnings()));
        all
    }
}
