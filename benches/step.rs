//! A whole training step of the workload `mnist-unet` at batch 16, and one reverse step as sampling makes it.
//! Images a second.
//!
//! `cargo bench --bench step`; `DENOIR_BENCH_DEVICE=gpu` adds a GPU. `denoir bench` does the same for every
//! workload, without criterion's statistics.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use denoir::bench::{Kind, find, verified};

use common::{devices, time};

const BATCH: usize = 16;

fn measure(c: &mut Criterion, name: &str, kind: Kind) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
    for (name, device) in devices() {
        let mut ready = None;
        group.bench_function(BenchmarkId::new(format!("mnist batch {BATCH}"), name), |b| {
            let subject = ready.get_or_insert_with(|| {
                let workload = find("mnist-unet", device, Some(BATCH)).expect("a workload");
                verified(&workload, kind, device, &mut |_| ()).unwrap_or_else(|e| panic!("{}", e.report()))
            });
            b.iter_custom(|runs| time(device, runs, || subject.advance().expect("a step")));
        });
    }
    group.finish();
}

fn train(c: &mut Criterion) {
    measure(c, "training step", Kind::Step);
}

fn sample(c: &mut Criterion) {
    measure(c, "sampling step", Kind::Sample);
}

criterion_group!(steps, train, sample);
criterion_main!(steps);
