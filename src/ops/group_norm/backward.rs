//! The gradients of a group norm: of x, and from the sums that this needs, of the parameters.

use rayon::iter::Either;
use rayon::prelude::*;

use super::loops::{Line, Source, column_sums, gradient, group_means};
use super::size::{How, Part, Size, TILES};
use crate::launch::{Accumulate, Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded};
use crate::ops::activation::{Activation, with_constant};
use crate::simd::vectorized;

/// Writes the sums of each sample, and the gradient of each part of x.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardX {
    pub size: Size,
    pub kind: Activation,
    /// The reads that are added to the gradients of the parts.
    pub accum: [Option<usize>; 2],
}

impl BackwardX {
    fn add<'a>(&self, plan: &'a mut Dispatches, entry: &'static str, part: Part) -> &'a mut Dispatch {
        let rows = self.size.gpu_sum_rows()[plan.variant()];
        self.size.add(plan, entry, part, rows, How::of(self.kind))
    }

    /// With all that the derivative at an element is made of; and with what it `adds`.
    fn add_of_x<'a>(
        &self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        part: Part,
        adds: bool,
    ) -> &'a mut Dispatch {
        let (size, after) = (self.size, self.size.parts().count());
        let accum = self.accum[part.index].filter(|_| adds);
        let how = How { adds: accum.is_some(), ..How::of(self.kind) };
        let dispatch = if plan.variant() == TILES {
            size.add_tiles(plan, entry, part, how)
        } else {
            size.add(plan, entry, part, size.gpu_sum_rows()[plan.variant()], how)
        };
        if adds {
            dispatch.read("accum", accum.unwrap_or(part.index));
        }
        dispatch
            .read("x", part.index)
            .read("dy", after)
            .read("gamma", after + 1)
            .read("beta", after + 2)
            .read("statistics", after + 3)
    }
}

impl Launch for BackwardX {
    fn name(&self) -> &'static str {
        "group_norm backward_x"
    }

    fn cpu(&self, io: &Io) {
        let size = self.size;
        let Size { n, p, c, groups, left } = size;
        let (x, after) = (Source::new(size, io), size.parts().count());
        let [dy, gamma, beta, statistics] = [0, 1, 2, 3].map(|i| io.read(after + i));
        let accum = self.accum.map(|read| read.map(|read| io.read(read)));
        let (sample, chunk) = (size.sample(), size.rows() * c);
        let right = match after {
            1 => Either::Left((0..n).into_par_iter().map(|_| <&mut [f32]>::default())),
            _ => Either::Right(io.write(2).par_chunks_mut(p * (c - left))),
        };
        io.write(1)
            .par_chunks_mut(p * left)
            .zip(right)
            .zip(dy.par_chunks(sample))
            .zip(statistics.par_chunks(3 * groups))
            .zip(io.write(0).par_chunks_mut(2 * c))
            .zip(io.scratch(0).par_chunks_mut(2 * c * size.chunks()))
            .zip(io.scratch(1).par_chunks_mut(5 * c))
            .enumerate()
            .for_each(|(n, ((((((left, right), dy), statistics), sums), partial), line))| {
                let x = x.sample(n);
                let (line, means) = line.split_at_mut(3 * c);
                let line = Line::new(size, statistics, gamma, beta, line);
                partial.par_chunks_mut(2 * c).zip(dy.par_chunks(chunk)).enumerate().for_each(
                    |(chunk, (sums, dy))| {
                        let (s0, s1) = sums.split_at_mut(c);
                        for (part, x) in x.chunk(chunk) {
                            vectorized(
                                #[inline(always)]
                                || with_constant!(self.kind, kind => column_sums(kind, x, dy, part, line, s0, s1)),
                            );
                        }
                    },
                );
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = partial.iter().skip(i).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32;
                }
                let (m0, m1) = means.split_at_mut(c);
                group_means(size, gamma, sums, m0, m1);
                let (m0, m1) = (&*m0, &*m1);
                for (part, dx) in size.parts().zip([left, right]) {
                    let chunks = dx.par_chunks_mut(size.rows() * part.width).zip(dy.par_chunks(chunk));
                    let accum = accum[part.index];
                    chunks.enumerate().for_each(|(chunk, (dx, dy))| {
                        let x = x.chunk_of(part, chunk);
                        let first = (n * p + chunk * size.rows()) * part.width;
                        let accum = accum.map(|accum| &accum[first..][..dx.len()]);
                        vectorized(
                            #[inline(always)]
                            || with_constant!(self.kind, kind => gradient(kind, x, dy, part, line, m0, m1, accum, dx)),
                        );
                    });
                }
            });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let (size, tiles) = (self.size, plan.variant() == TILES);
        let after = size.parts().count();
        if tiles && size.fits_tile() {
            for part in size.parts() {
                let whole = self.add_of_x(plan, "backward_whole", part, true);
                whole.write("sums_out", 0).write("dx", 1 + part.index);
            }
            return;
        }
        let chunks = size.p.div_ceil(size.gpu_sum_rows()[plan.variant()]);
        for part in size.parts() {
            let partial = self.add_of_x(plan, "backward_partial", part, false).scratch("partial", 0);
            if !tiles {
                partial.cover(size.n * chunks * part.width.div_ceil(32), 1);
            }
        }
        self.add(plan, "backward_sums", size.all())
            .scratch("partial", 0)
            .write("sums_out", 0)
            .cover(size.n * size.c, 256);
        self.add(plan, "backward_means", size.all())
            .read("gamma", after + 1)
            .write("sums", 0)
            .scratch("means", 1)
            .cover(size.n * size.groups, 256);
        for part in size.parts() {
            let gradient = self.add_of_x(plan, "backward_x", part, true);
            gradient.scratch("means", 1).write("dx", 1 + part.index);
            if !tiles {
                gradient.cover(size.blocks(part), 1);
            }
        }
    }
}

impl BackwardX {
    pub fn recorded(self) -> Recorded {
        let BackwardX { size, kind, .. } = self;
        let info = LaunchInfo {
            cpu_scratch: vec![size.n * size.chunks() * 2 * size.c, size.n * 5 * size.c],
            gpu_scratch: vec![
                2 * size.n * size.most_chunks(size.gpu_sum_rows()) * size.c,
                2 * size.n * size.groups,
            ],
            accumulate: Accumulate::by(move |write| {
                let part = write.checked_sub(1)?; // the sums come first
                let mut more = self;
                let next = size.parts().count() + 4 + self.accum.iter().flatten().count();
                more.accum[part].replace(next).is_none().then(|| more.recorded())
            }),
            tuning: size.tuning(size.gpu_sum_rows(), kind),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

#[derive(Debug)]
pub(super) struct BackwardParameters {
    pub size: Size,
}

impl Launch for BackwardParameters {
    fn name(&self) -> &'static str {
        "group_norm backward_parameters"
    }

    fn cpu(&self, io: &Io) {
        let (sums, c) = (io.read(0), self.size.c);
        let total =
            |first: usize| sums.iter().skip(first).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32;
        for (i, (dgamma, dbeta)) in io.write(0).iter_mut().zip(io.write(1)).enumerate() {
            *dbeta = total(i);
            *dgamma = total(c + i);
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.size
            .add(plan, "backward_parameters", self.size.all(), self.size.p, How::of(Activation::Identity))
            .read("sums", 0)
            .write("dgamma", 0)
            .write("dbeta", 1)
            .cover(self.size.c.div_ceil(32), 1);
    }
}
