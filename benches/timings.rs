//! The single ops of `denoir bench ops`, and a training and a sampling step of the workload `mnist-unet` at
//! batch 16, with criterion's statistics. Everything is checked before it is timed.
//!
//! `cargo bench -- conv3x3` times what has `conv3x3` in its name; `DENOIR_BENCH_DEVICE=gpu` (or `gpu:INDEX`,
//! `gpu:NAME-PART`) adds a GPU. Of an op, read `Gelem/s` as GFLOP/s: the elements are floating-point
//! operations, two for a multiplication and addition; `GB/s` counts the bytes that must move even if each
//! tensor is read or written only once. Of a step, an element is an image.

use std::sync::LazyLock;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use denoir::bench::{self, Kind};
use denoir::device::Device;
use denoir::error::Result;

/// The value of a result whose error would be this machine's.
fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{}", e.report()))
}

/// The CPU device, and the one that `DENOIR_BENCH_DEVICE` names.
static DEVICES: LazyLock<Vec<(String, Device)>> = LazyLock::new(|| {
    let wanted = std::env::var("DENOIR_BENCH_DEVICE").ok().filter(|name| !name.is_empty() && name != "cpu");
    let open = |name: String| {
        let device = must(Device::open(&name));
        eprintln!("{name} is {}", device.describe());
        (name, device)
    };
    std::iter::once("cpu".to_owned()).chain(wanted).map(open).collect()
});

fn ops(c: &mut Criterion) {
    for op in must(bench::ops("")) {
        let mut group = c.benchmark_group(op.name);
        for ((name, device), &direction) in
            DEVICES.iter().flat_map(|d| op.directions.iter().map(move |w| (d, w)))
        {
            let cost = op.cost(direction, device);
            group.throughput(match cost.flops {
                0 => Throughput::BytesDecimal(cost.bytes),
                flops => Throughput::Elements(flops),
            });
            let mut ready = None; // nothing is compiled that the command line leaves out
            group.bench_function(BenchmarkId::new(format!("{direction:?}"), name), |b| {
                let op = ready.get_or_insert_with(|| must(op.checked(direction, device)));
                b.iter_custom(|runs| (0..runs).map(|_| must(op.run())).sum());
            });
        }
        group.finish();
    }
}

fn steps(c: &mut Criterion) {
    const BATCH: usize = 16;
    for (title, kind) in [("training step", Kind::Step), ("sampling step", Kind::Sample)] {
        let mut group = c.benchmark_group(title);
        group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
        for (name, device) in DEVICES.iter() {
            let mut ready = None;
            group.bench_function(BenchmarkId::new(format!("mnist batch {BATCH}"), name), |b| {
                let subject = ready.get_or_insert_with(|| {
                    let workload = must(bench::find("mnist-unet", device, Some(BATCH)));
                    must(bench::verified(&workload, kind, device, &mut |_| ()))
                });
                b.iter(|| must(subject.advance()));
            });
        }
        group.finish();
    }
}

criterion_group!(timings, ops, steps);
criterion_main!(timings);
