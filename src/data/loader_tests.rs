//! Tests of the loader: one order of samples, whatever the threads, the start and the speed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::dreambooth::{DreamBooth, is_of_class};
use super::*;

/// Picture `i` is `[i, -1]`; reading takes a while that differs from picture to picture.
struct Numbers {
    len: Option<u64>,
    reads: AtomicU64,
    slow: Duration,
    fail_at: Option<u64>,
}

impl Numbers {
    fn new(len: Option<u64>) -> Self {
        Numbers { len, reads: AtomicU64::new(0), slow: Duration::ZERO, fail_at: None }
    }
}

impl Dataset for Numbers {
    fn len(&self) -> Option<u64> {
        self.len
    }
    fn shape(&self) -> [usize; 3] {
        [1, 2, 1]
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.slow * (1 + index as u32 % 3));
        if self.fail_at == Some(index) {
            panic!("decoder broke");
        }
        out.copy_from_slice(&[index as f32, -1.0]);
        Ok(index as u32)
    }
}

fn take(loader: &mut Loader, n: usize) -> Vec<Batch> {
    (0..n).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let run = |threads, slow| {
        let data = Numbers { slow, ..Numbers::new(Some(10)) };
        take(&mut Loader::pictures(Arc::new(data), false, 4, 9, true, 0.into(), threads).unwrap(), 12)
    };
    let one = run(1, Duration::ZERO);
    assert_eq!(one, run(5, Duration::from_micros(300)));
    assert!(one.iter().all(|b| b.images.len() == 8 && b.labels.len() == 4));
}

#[test]
fn a_later_start_gives_what_an_earlier_one_comes_to() {
    for len in [None, Some(7), Some(1)] {
        let start = |p| Loader::new(Arc::new(Numbers::new(len)), 3, 5, true, p).unwrap();
        let all = take(&mut start(0), 9);
        assert_eq!(all[4..], take(&mut start(12), 5), "len {len:?}");
    }
}

#[test]
fn an_epoch_shows_every_sample_once_and_epochs_and_seeds_differ() {
    let run = |seed| {
        let mut loader = Loader::new(Arc::new(Numbers::new(Some(50))), 5, seed, false, 0).unwrap();
        take(&mut loader, 20).into_iter().flat_map(|b| b.labels).collect::<Vec<_>>()
    };
    let seen = run(1);
    for epoch in seen.chunks(50) {
        let mut sorted = epoch.to_vec();
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(epoch, sorted, "shuffled");
    }
    assert_ne!(seen[..50], seen[50..]);
    assert_ne!(seen, run(2));
}

#[test]
fn an_endless_set_is_read_in_order() {
    let mut loader = Loader::new(Arc::new(Numbers::new(None)), 4, 1, false, 8).unwrap();
    let seen: Vec<u32> = take(&mut loader, 3).into_iter().flat_map(|b| b.labels).collect();
    assert_eq!(seen, (8..20).collect::<Vec<_>>());
}

#[test]
fn about_half_of_the_pictures_are_mirrored_only_when_asked() {
    let flipped = |flip| {
        let mut loader = Loader::new(Arc::new(Numbers::new(None)), 100, 1, flip, 1).unwrap();
        let batches = take(&mut loader, 10);
        batches.iter().flat_map(|b| b.images.chunks(2)).filter(|p| p[0] == -1.0).count()
    };
    assert_eq!(flipped(false), 0);
    assert!((420..580).contains(&flipped(true)), "{}", flipped(true));
}

#[test]
fn reading_ahead_is_bounded() {
    let data = Arc::new(Numbers::new(None));
    let mut loader = Loader::pictures(data.clone(), false, 2, 1, false, 0.into(), 3).unwrap();
    loader.next().unwrap();
    let limit = 2 * (1 + 3 + 2); // the batch taken, and `ahead` more
    let deadline = Instant::now() + Duration::from_secs(10);
    while data.reads.load(Ordering::SeqCst) < limit && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(data.reads.load(Ordering::SeqCst), limit);
}

#[test]
fn dropping_does_not_wait_for_batches_being_made() {
    let data = Numbers { slow: Duration::from_millis(10), ..Numbers::new(None) };
    let loader = Loader::new(Arc::new(data), 10_000, 1, false, 0).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_panic_while_reading_is_an_error_of_its_batch() {
    let data = Numbers { fail_at: Some(3), ..Numbers::new(None) };
    let mut loader = Loader::new(Arc::new(data), 2, 1, false, 0).unwrap();
    assert_eq!(loader.next().unwrap().labels, [0, 1]);
    let report = loader.next().unwrap_err().report();
    assert!(report.contains("decoder broke"), "{report}");
    assert_eq!(loader.next().unwrap().labels, [4, 5]);
}

#[test]
fn picks_are_the_samples_of_the_batches() {
    for (flip, first) in [(false, 0), (true, 0), (true, 35)] {
        let read = Loader::new(Arc::new(Numbers::new(Some(10))), 4, 9, flip, first).unwrap();
        let picked = Loader::picking((0..10).collect(), 1, 4, 9, flip, first).unwrap();
        let (mut read, mut picked) = (read, picked);
        for batch in take(&mut read, 9) {
            let Picks { samples, labels } = picked.next().unwrap();
            assert_eq!(labels, batch.labels);
            let picture = |&sample: &u32| {
                let index = (sample & !MIRRORED) as f32;
                if sample & MIRRORED == 0 { [index, -1.0] } else { [-1.0, index] }
            };
            assert_eq!(samples.iter().flat_map(picture).collect::<Vec<_>>(), batch.images);
        }
    }
}

#[test]
fn conditions_are_of_the_pictures_as_they_are_mirrored() {
    use crate::data::condition::{ConditionConfig, ConditionKind};
    let start = |kind, p| {
        let data = crate::data::open("faces", &crate::data::tests::options(16)).unwrap();
        let condition = ConditionConfig { kind, ..ConditionConfig::default() };
        Loader::conditioned(data, condition, 4, 9, true, p).unwrap()
    };
    let all = take(&mut start(ConditionKind::Grey, 0), 8);
    for pixel in all.iter().flat_map(|batch| batch.images.chunks(4)) {
        assert!((pixel[..3].iter().sum::<f32>() - 3.0 * pixel[3]).abs() < 1e-5, "{pixel:?}");
    }
    let holes = take(&mut start(ConditionKind::Mask, 0), 8);
    assert_eq!(holes[5..], take(&mut start(ConditionKind::Mask, 20), 3));
    // The same images, mirrored alike, and holes that differ.
    let images = |batches: &[Batch], c: usize| -> Vec<f32> {
        batches.iter().flat_map(|b| b.images.chunks(c).flat_map(|p| p[..3].to_vec())).collect()
    };
    assert_eq!(images(&all, 4), images(&holes, 7));
    let masks: Vec<f32> = holes[0].images.iter().skip(6).step_by(7).copied().collect();
    assert_ne!(masks[..256], masks[256..512]);
}

/// Half of each batch is of the class, each pair is met once in an epoch, and a later start changes nothing.
#[test]
fn instances_and_pictures_of_their_class_stay_together() {
    let captions = [vec!["a thing".to_owned()], vec!["a kind".to_owned()]];
    let both = || {
        let [instances, class] = [3, 5].map(|len| Arc::new(Numbers::new(Some(len))) as Arc<dyn Dataset>);
        Arc::new(DreamBooth::new(instances, Some(class), captions.clone()))
    };
    let batches = take(&mut Loader::new(both(), 4, 7, true, 0).unwrap(), 5);
    for batch in &batches {
        let class: Vec<bool> = batch.samples.iter().map(|&sample| is_of_class(sample)).collect();
        assert_eq!(class, [false, true, false, true]);
        for (&sample, picture) in batch.samples.iter().zip(batch.images.chunks(2)) {
            let wanted = sample / 2 % if is_of_class(sample) { 5 } else { 3 };
            assert!(picture.contains(&(wanted as f32)), "{sample}: {picture:?}");
        }
    }
    let all: Vec<u64> = batches.iter().flat_map(|batch| batch.samples.clone()).collect();
    for epoch in all.chunks(10) {
        let mut met = epoch.to_vec();
        met.sort_unstable();
        assert_eq!(met, (0..10).collect::<Vec<u64>>());
    }
    assert_ne!(all[..10], all[10..]);
    assert_eq!(take(&mut Loader::new(both(), 4, 7, true, 8).unwrap(), 3), batches[2..]);
    let picked = take_picks(Loader::picking(vec![0; 10], 2, 4, 7, false, 0).unwrap(), 5);
    assert_eq!(picked, all);
}

fn take_picks(mut loader: Loader<Picks>, n: usize) -> Vec<u64> {
    (0..n).flat_map(|_| loader.next().unwrap().samples).map(u64::from).collect()
}
