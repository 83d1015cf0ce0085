//! Group norm once more, from the statistics that the forward pass kept: one pass instead of three.

use rayon::prelude::*;

use super::loops::{Line, Source};
use super::normalise_sample;
use super::size::{How, Size, TILES};
use crate::launch::{Dispatches, Io, Launch, LaunchInfo, Recorded};
use crate::ops::activation::Activation;

/// Reads x (in its parts), gamma, beta and the statistics; gives the same bits as the forward launch did.
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
        let size = self.size;
        let (x, after) = (Source::new(size, io), size.parts().count());
        let [gamma, beta, statistics] = [0, 1, 2].map(|i| io.read(after + i));
        io.write(0)
            .par_chunks_mut(size.sample())
            .zip(statistics.par_chunks(3 * size.groups))
            .zip(io.scratch(0).par_chunks_mut(3 * size.c))
            .enumerate()
            .for_each(|(n, ((y, statistics), line))| {
                let line = Line::new(size, statistics, gamma, beta, line);
                normalise_sample(size, self.kind, x.sample(n), line, y);
            });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let after = self.size.parts().count();
        for part in self.size.parts() {
            let normalise = if plan.variant() == TILES {
                self.size.add_tiles(plan, "normalise", part, How::of(self.kind))
            } else {
                let alone = self.size.add(plan, "normalise", part, self.size.p, How::of(self.kind));
                alone.cover(self.size.blocks(part), 1)
            };
            normalise
                .read("x", part.index)
                .read("gamma", after)
                .read("beta", after + 1)
                .read("statistics", after + 2)
                .write("y", 0);
        }
    }
}

impl Apply {
    pub fn recorded(self) -> Recorded {
        let Apply { size, kind } = self;
        let info = LaunchInfo {
            cpu_scratch: vec![size.n * 3 * size.c],
            // Chunks make no difference to what is only normalised.
            tuning: size.tuning([size.p, size.p, size.p, size.gpu_rows()[TILES]], kind),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
