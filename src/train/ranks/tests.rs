//! Tests of ranks: threads that pass bytes as processes would.

use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use super::*;
use crate::device::Device;
use crate::group::Idle;
use crate::nn::linear;
use crate::ops::activation::{Activation, activation};
use crate::ops::loss::mse;

use crate::train::{Input, TrainOptions, Trainer};

/// A rank that is a thread.
struct Thread {
    rank: usize,
    all: Arc<(Barrier, Mutex<Vec<Vec<u8>>>)>,
}

impl Thread {
    fn ranks(size: usize) -> Vec<Thread> {
        let all = Arc::new((Barrier::new(size), Mutex::new(vec![Vec::new(); size])));
        (0..size).map(|rank| Thread { rank, all: Arc::clone(&all) }).collect()
    }

    /// What all have put there.
    fn pass(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (barrier, board) = &*self.all;
        board.lock().unwrap()[self.rank] = bytes.to_vec();
        barrier.wait();
        let all = board.lock().unwrap().clone();
        barrier.wait();
        all
    }
}

impl Group for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.all.1.lock().unwrap().len()
    }

    fn gather(&self, mine: &[u8], all: &mut [u8], _: Idle) -> Result<()> {
        all.copy_from_slice(&self.pass(mine).concat());
        Ok(())
    }

    fn exchange(&self, parts: &[u8], mine: &mut [u8], _: Idle) -> Result<()> {
        let part = parts.len() / self.size();
        let theirs = self.pass(parts);
        let to_me = theirs.iter().flat_map(|parts| &parts[self.rank * part..][..part]);
        mine.copy_from_slice(&to_me.copied().collect::<Vec<u8>>());
        Ok(())
    }

    fn end(&self) {}
}

/// Runs `work` on so many ranks; what came of it, in their order.
fn on_ranks<T: Send + 'static>(size: usize, work: impl Fn(Rc<Ranks>) -> T + Send + Copy + 'static) -> Vec<T> {
    let started = Thread::ranks(size)
        .into_iter()
        .map(|rank| thread::spawn(move || work(Rc::new(Ranks::new(Box::new(rank), |_| Ok(()))))));
    let started: Vec<_> = started.collect();
    started.into_iter().map(|thread| thread.join().unwrap()).collect()
}

const X: Input<f32, 2> = Input::new("x", [2, 3]);

/// All that a checkpoint holds after three steps of `batches` batches in `shards`.
fn trained(batches: u64, shards: usize, ranks: Option<Rc<Ranks>>) -> Vec<Vec<f32>> {
    let options = TrainOptions { batch_size: 2, accumulation: batches, shards, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&Device::open_with("cpu", Some(1)).unwrap(), options, |net, batch| {
        let x = batch.input(X);
        let hidden = activation(&linear(&net.sub("a"), &x, 17), Activation::Silu);
        mse(&linear(&net.sub("b"), &hidden, 3), &x, None)
    })
    .unwrap();
    ranks.into_iter().for_each(|ranks| trainer.join(ranks));
    let mut losses = Vec::new();
    for step in 0..3 {
        let outcome = trainer.step(|batch| {
            let first = (step * 100 + batch.first_sample()) as f32;
            batch.write(X, &[0, 1, 2, 3, 4, 5].map(|i| (first + i as f32 * 0.37).sin()))
        });
        losses.push(outcome.unwrap().unwrap().loss);
    }
    let sets = trainer.values().unwrap().sets;
    sets.into_iter().chain([losses]).collect()
}

#[test]
fn ranks_and_one_process_train_to_the_same_bytes() {
    for (batches, shards, sizes) in
        [(8, 8, &[2, 4, 8][..]), (12, 6, &[2, 6]), (9, 9, &[3, 9]), (5, 5, &[5]), (1, 1, &[1])]
    {
        let alone = trained(batches, shards, None);
        for &size in sizes {
            let together = on_ranks(size, move |ranks| trained(batches, shards, Some(ranks)));
            for (rank, theirs) in together.iter().enumerate() {
                assert!(*theirs == alone, "{shards} shards, rank {rank} of {size}");
            }
        }
        // A group of one, with a shard for all.
        assert!(on_ranks(1, move |ranks| trained(batches, 1, Some(ranks)))[0] == trained(batches, 1, None));
        // Another order of sums, and nothing more.
        let added = trained(batches, 1, None);
        for (sharded, added) in alone[..2].iter().flatten().zip(added[..2].iter().flatten()) {
            assert!((sharded - added).abs() <= 2e-6 * added.abs().max(0.1), "{sharded} {added}");
        }
        assert!(alone[2] != added[2] || batches < 8, "{shards} shards: the order of sums can be seen");
    }
}

#[test]
fn the_tree_adds_by_the_smallest_factor_first() {
    // Twelve leaves: halves, quarters, and three leaves one after the other.
    let leaves: Vec<f32> = (0..12).map(|i| 1.0 + 1e-7 * (i * i) as f32).collect();
    let three = |i: usize| (leaves[i] + leaves[i + 1]) + leaves[i + 2];
    let expected = (three(0) + three(3)) + (three(6) + three(9));
    let mut tree = Tree::new(factors(12).into_iter().rev());
    let sums: Vec<Option<Vec<f32>>> = leaves.iter().map(|&leaf| tree.add(vec![leaf])).collect();
    assert!(sums[..11].iter().all(Option::is_none));
    assert_eq!(sums[11], Some(vec![expected]));
    assert_eq!(ranks_of(12), [1, 2, 4, 12]);
    assert_eq!(shared_by(9), "9 shards can be shared by 1, 3, 9 ranks");
    assert_eq!(ranks_of(1), [1]);
}

#[test]
#[should_panic(expected = "3 ranks with 4 shards: 4 shards can be shared by 1, 2, 4 ranks")]
fn ranks_that_cannot_share_the_shards() {
    Shards::new(8, 4, [0, 3]);
}

#[test]
fn an_error_of_one_rank_is_known_to_all() {
    let told = on_ranks(3, |ranks| {
        let mine = if ranks.rank() == 1 { Err(Error::new("no disk").caused_by("a cable")) } else { Ok(7) };
        let error = ranks.agree(mine, |_| Vec::new()).map(drop).unwrap_err();
        (ranks.have_failed(), error.report())
    });
    let of_others = "error: rank 1: no disk\n  caused by: a cable";
    let own = "error: no disk\n  caused by: a cable";
    assert_eq!(told, [of_others, own, of_others].map(|report| (true, report.to_owned())));
}

#[test]
fn what_differs_is_named_and_a_wish_to_stop_reaches_all() {
    let told = on_ranks(4, |ranks| {
        if ranks.rank() == 3 {
            ranks.stop();
        }
        let before = ranks.is_stopping();
        ranks.check_alike("weights", Ok(vec![1])).unwrap();
        let after = ranks.is_stopping();
        let error = ranks.check_alike("weights", Ok(vec![u8::from(ranks.rank() > 1)])).unwrap_err();
        (before, after, error.to_string())
    });
    let error = "rank 2 has other weights than rank 0; all ranks need the same denoir, settings, data and \
                 kind of device";
    assert!(told.iter().all(|told| *told == (false, true, error.to_owned())), "{told:?}");
}

#[test]
fn a_wait_can_be_given_up() {
    /// Nobody answers.
    struct Alone;
    impl Group for Alone {
        fn rank(&self) -> usize {
            1
        }
        fn size(&self) -> usize {
            2
        }
        fn gather(&self, _: &[u8], _: &mut [u8], idle: Idle) -> Result<()> {
            loop {
                idle()?;
            }
        }
        fn exchange(&self, _: &[u8], _: &mut [u8], idle: Idle) -> Result<()> {
            loop {
                idle()?;
            }
        }
        fn end(&self) {
            panic!("a group that lacks a rank cannot be ended");
        }
    }
    let gives_up = |waited: Duration| {
        if waited < Duration::from_millis(20) { Ok(()) } else { Err(Error::new("enough")) }
    };
    let ranks = Ranks::new(Box::new(Alone), gives_up);
    let error = ranks.agree(Ok(()), |()| Vec::new()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "enough");
    assert!(ranks.have_failed());
    ranks.end();
}
