//! Group norm once more, from the statistics that the forward pass kept: one pass instead of three.

use rayon::prelude::*;

use super::loops::Line;
use super::{Size, normalise_sample};
use crate::launch::{Cut, Dispatches, Io, Launch};
use crate::ops::activation::Activation;

/// Reads x, gamma, beta, offset and rstd; gives the same bits as the forward launch did.
#[derive(Debug)]
pub(super) struct Apply {
    pub size: Size,
    pub kind: Activation,
}

impl Launch for Apply {
    fn name(&self) -> &'static str {
        "group_norm again"
    }

    fn cpu(&self, io: &Io) {
        let Size { c, groups, .. } = self.size;
        let (gamma, beta) = (io.read(1), io.read(2));
        let sample = self.size.sample();
        io.write(0)
            .par_chunks_mut(sample)
            .zip(io.read(0).par_chunks(sample))
            .zip(io.read(3).par_chunks(groups))
            .zip(io.read(4).par_chunks(groups))
            .zip(io.scratch(0).par_chunks_mut(3 * c))
            .for_each(|((((y, x), offset), rstd), line)| {
                let line = Line::new(self.size, x, offset, rstd, gamma, beta, line);
                normalise_sample(self.size, self.kind, x, line, y);
            });
    }

    fn cpu_scratch(&self) -> Vec<usize> {
        vec![self.size.n * 3 * self.size.c]
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.size
            .add(plan, "normalise", self.size.p, self.kind, 0.0)
            .read("x", 0)
            .read("gamma", 1)
            .read("beta", 2)
            .read("offset", 3)
            .read("rstd", 4)
            .write("y", 0)
            .cover(self.size.blocks(), 1);
    }

    fn cuts(&self) -> Vec<Cut> {
        let Apply { size, kind } = *self;
        let part = move |_, n| Apply { size: Size { n, ..size }, kind };
        vec![Cut::along(size.n, part).reads([0, 3, 4]).writes([0])]
    }
}
