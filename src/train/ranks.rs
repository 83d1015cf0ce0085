//! Ranks that train one model together: how they agree, and the fixed tree that adds up their gradients.

use std::cell::Cell;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::group::Group;

/// Between looks at whether the others have come.
const LOOK: Duration = Duration::from_micros(200);
/// Looks at once before a rank begins to sleep.
const EAGER: u32 = 100;
/// Elements of a slice that is added up at once.
const SLICE: usize = 1 << 20;
/// Bytes of what each rank tells first: how it went, whether it is to stop, and how many bytes follow.
const HEAD: usize = 16;

/// The ranks of a training, of which this process is one.
pub struct Ranks {
    group: Box<dyn Group>,
    /// Called while this process waits, with how long it has waited.
    idle: Box<dyn Fn(Duration) -> Result<()>>,
    stops: Cell<bool>,
    stopping: Cell<bool>,
    failed: Cell<bool>,
    /// A rank is missing.
    broken: Cell<bool>,
}

impl Ranks {
    /// `idle`: called over and over while this process waits for others, with how long it has waited; an
    /// error ends the wait, and with it the training.
    pub fn new(group: Box<dyn Group>, idle: impl Fn(Duration) -> Result<()> + 'static) -> Ranks {
        let [stops, stopping, failed, broken] = [const { Cell::new(false) }; 4];
        Ranks { group, idle: Box::new(idle), stops, stopping, failed, broken }
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.group.rank()
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.group.size()
    }

    /// Whether this rank writes the run and talks to the user.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Asks all ranks to stop after the step in which they agree next.
    pub fn stop(&self) {
        self.stops.set(true);
    }

    /// Whether they agreed to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Whether all ranks know of an error, and end.
    pub fn have_failed(&self) -> bool {
        self.failed.get()
    }

    /// Ends the group: all ranks are through, or know that one failed.
    pub fn end(&self) {
        if !self.broken.get() {
            self.group.end();
        }
    }

    /// Notes that a rank is missing, after which nothing can be sent.
    fn whole<T>(&self, sent: Result<T>) -> Result<T> {
        sent.inspect_err(|_| [&self.failed, &self.broken].into_iter().for_each(|flag| flag.set(true)))
    }

    fn waits(&self) -> impl Fn() -> Result<()> {
        let (began, looks) = (Instant::now(), Cell::new(0_u32));
        move || {
            looks.set(looks.get().saturating_add(1));
            if looks.get() < EAGER {
                thread::yield_now();
                return Ok(());
            }
            thread::sleep(LOOK);
            (self.idle)(began.elapsed())
        }
    }

    /// Tells all ranks what came of this one's work, `tells` of it if it went well, and gives what each
    /// rank told, in their order.
    ///
    /// # Errors
    /// `mine`, or that of the first rank that has one; or when another does not answer.
    pub fn agree<T>(&self, mine: Result<T>, tells: impl Fn(&T) -> Vec<u8>) -> Result<(T, Vec<Vec<u8>>)> {
        let told = match &mine {
            Ok(mine) => tells(mine),
            Err(error) => error.report().into_bytes(),
        };
        let mut head = [0; HEAD];
        (head[0], head[1]) = (u8::from(mine.is_err()), u8::from(self.stops.get()));
        head[8..].copy_from_slice(&(told.len() as u64).to_le_bytes());
        let mut heads = vec![0; HEAD * self.size()];
        let gathered = self.group.gather(&head, &mut heads, &self.waits()).and_then(|()| {
            let lengths: Vec<usize> = heads
                .chunks_exact(HEAD)
                .map(|head| u64::from_le_bytes(*head[8..].first_chunk().unwrap_or(&[0; 8])) as usize)
                .collect();
            let longest = lengths.iter().copied().max().unwrap_or(0);
            let mut padded = told;
            padded.resize(longest, 0);
            let mut all = vec![0; longest * self.size()];
            if longest > 0 {
                self.group.gather(&padded, &mut all, &self.waits())?;
            }
            let of_rank = |(rank, &length): (usize, &usize)| all[rank * longest..][..length].to_vec();
            Ok(lengths.iter().enumerate().map(of_rank).collect::<Vec<_>>())
        });
        let told = self.whole(gathered)?;
        self.stopping.set(self.stopping.get() || heads.chunks_exact(HEAD).any(|head| head[1] != 0));
        let failed = heads.chunks_exact(HEAD).position(|head| head[0] != 0);
        if failed.is_some() {
            self.failed.set(true);
        }
        match (mine, failed) {
            (Ok(mine), None) => Ok((mine, told)),
            (Ok(_), Some(rank)) => {
                let report = String::from_utf8_lossy(&told[rank]);
                let mut lines = report.trim_start_matches("error: ").lines();
                let error = Error::new(format!("rank {rank}: {}", lines.next().unwrap_or_default()));
                Err(lines.fold(error, |error, line| {
                    error.caused_by(line.trim_start().trim_start_matches("caused by: "))
                }))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Runs `work` on the first rank, while the others wait for it.
    ///
    /// # Errors
    /// Those of `work`, on all ranks.
    pub fn first(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = if self.leads() { work() } else { Ok(()) };
        self.agree(done, |()| Vec::new()).map(drop)
    }

    /// An error on all ranks unless `mine` is the same on each; `what` it is.
    pub fn check_alike(&self, what: &str, mine: Result<Vec<u8>>) -> Result<()> {
        let (_, all) = self.agree(mine, Vec::clone)?;
        let Some(other) = all.iter().position(|told| *told != all[0]) else { return Ok(()) };
        self.failed.set(true);
        Err(Error::new(format!("rank {other} has other {what} than rank 0"))
            .hint("all ranks need the same denoir, settings, data and kind of device"))
    }

    /// The sum of the ranks' `values`, as many on each, in the order of `tree`.
    fn sum(&self, values: &mut [f32], tree: &Tree) -> Result<()> {
        let size = self.size();
        if size == 1 {
            return Ok(());
        }
        // All are here, or about to come.
        let began = Instant::now();
        let idle = || {
            thread::yield_now();
            (self.idle)(began.elapsed())
        };
        for chunk in values.chunks_mut(SLICE * size) {
            let slice = chunk.len().div_ceil(size);
            let mut parts = vec![0.0_f32; slice * size];
            parts[..chunk.len()].copy_from_slice(chunk);
            let mut mine = vec![0.0_f32; slice * size];
            let bytes = bytemuck::cast_slice_mut(&mut mine);
            self.whole(self.group.exchange(bytemuck::cast_slice(&parts), bytes, &idle))?;
            let mut tree = tree.clone();
            let sum = mine.chunks_exact(slice).find_map(|part| tree.add(part.to_vec()));
            let sum = sum.unwrap_or_else(|| unreachable!("as many parts as the tree has leaves"));
            let bytes = bytemuck::cast_slice_mut(&mut parts);
            self.whole(self.group.gather(bytemuck::cast_slice(&sum), bytes, &idle))?;
            chunk.copy_from_slice(&parts[..chunk.len()]);
        }
        Ok(())
    }
}

/// A sum in a fixed order: each node adds its children, as many as its level says, from the first on.
#[derive(Clone)]
struct Tree {
    /// From the leaves up: children of a node, and the sum of those that are there.
    levels: Vec<(usize, usize, Vec<f32>)>,
}

impl Tree {
    fn new(children: impl Iterator<Item = usize>) -> Tree {
        Tree { levels: children.map(|n| (n, 0, Vec::new())).collect() }
    }

    /// Adds the next leaf. The sum of all, after the last.
    fn add(&mut self, mut values: Vec<f32>) -> Option<Vec<f32>> {
        for (children, there, sum) in &mut self.levels {
            match there {
                0 => *sum = values,
                _ => sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value),
            }
            *there += 1;
            if *there < *children {
                return None;
            }
            *there = 0;
            values = std::mem::take(sum);
        }
        Some(values)
    }
}

/// The prime factors of a number, the smallest first.
fn factors(mut n: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut factor = 2;
    while n > 1 {
        while n.is_multiple_of(factor) {
            found.push(factor);
            n /= factor;
        }
        factor += 1;
    }
    found
}

/// The numbers of ranks that can share so many shards: each has a whole part of the tree.
pub(crate) fn ranks_of(shards: usize) -> Vec<usize> {
    let below = |ranks: &mut usize, factor: usize| {
        *ranks *= factor;
        Some(*ranks)
    };
    std::iter::once(1).chain(factors(shards).into_iter().scan(1, below)).collect()
}

/// A step's batches in shards, whose gradients are added in one order however many ranks compute them: at
/// the root by the smallest prime factor of the number of shards, and so on down.
pub(super) struct Shards {
    /// Batches of a shard, whose gradients the device adds.
    batches: usize,
    /// Those of this rank.
    own: Range<usize>,
    of_rank: Tree,
    of_ranks: Tree,
}

impl Shards {
    /// `batches` of a step, in `shards`, of which rank `rank` of so many has its part.
    ///
    /// # Panics
    /// When the shards do not divide the batches, or the ranks cannot share them.
    pub fn new(batches: usize, shards: usize, [rank, ranks]: [usize; 2]) -> Shards {
        assert!(batches.is_multiple_of(shards), "{batches} batches of a step in {shards} shards");
        let Some(depth) = ranks_of(shards).iter().position(|&n| n == ranks) else {
            panic!("{ranks} ranks with {shards} shards: {}", shared_by(shards))
        };
        let (all, own) = (factors(shards), batches / ranks);
        let tree = |factors: &[usize]| Tree::new(factors.iter().rev().copied());
        Shards {
            batches: batches / shards,
            own: rank * own..(rank + 1) * own,
            of_rank: tree(&all[depth..]),
            of_ranks: tree(&all[..depth]),
        }
    }

    /// The batches that this rank computes.
    pub fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Whether `batch` is the last of its shard.
    pub fn ends_with(&self, batch: usize) -> bool {
        (batch + 1).is_multiple_of(self.batches)
    }

    /// Adds the gradient of this rank's next shard. The sum of all of them, after the last.
    pub fn add(&mut self, gradient: Vec<f32>) -> Option<Vec<f32>> {
        self.of_rank.add(gradient)
    }

    /// The sum over all ranks.
    pub fn sum(&self, values: &mut [f32], ranks: Option<&Ranks>) -> Result<()> {
        ranks.map_or(Ok(()), |ranks| ranks.sum(values, &self.of_ranks))
    }
}

/// What numbers of ranks can share so many shards, as a sentence for the user.
pub(crate) fn shared_by(shards: usize) -> String {
    let known = ranks_of(shards).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("{shards} shards can be shared by {known} ranks")
}

#[cfg(test)]
mod tests;
