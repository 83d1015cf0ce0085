//! A step of the CPU device allocates nothing: all that its launches need was given to them before.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use denoir::bench::{Kind, Subject, find};
use denoir::device::Device;
use denoir::device::cpu::Cpu;

/// The system's allocator, which counts for each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may still allocate, when its counter is gone.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations so far by the threads of the device.
fn allocations(cpu: &Cpu) -> usize {
    cpu.run(|| rayon::broadcast(|_| COUNT.get())).into_iter().sum()
}

#[test]
fn the_launches_of_a_step_allocate_nothing() {
    let device = Device::open_with("cpu", Some(2)).unwrap();
    let Device::Cpu(cpu) = &device else { panic!("the CPU device") };
    for (name, kind) in [
        ("mnist-unet", Kind::Step),
        ("mnist-unet", Kind::Sample),
        ("vae64", Kind::Step),
        ("mlp-vae", Kind::Step),
        ("arena-unet", Kind::Step),
    ] {
        let workload = find(name, &device, Some(1)).unwrap();
        let mut subject = Subject::new(&workload, kind, &device).unwrap();
        // Working memory of each thread grows to what it needs; which thread takes which task is chance.
        for _ in 0..3 {
            subject.advance().unwrap();
        }
        // What counting costs itself.
        let counting = allocations(cpu);
        let before = allocations(cpu);
        const STEPS: usize = 3;
        for _ in 0..STEPS {
            subject.advance().unwrap();
        }
        let found = (allocations(cpu) - before).saturating_sub(before - counting);
        let launches = subject.program().compiled().len();
        // The lists of working memory of the threads may still grow once.
        assert!(
            found * 20 < launches,
            "{name}, {kind:?}: {found} allocations in {STEPS} steps of {launches} launches"
        );
        eprintln!("{name}, {kind:?}: {found} allocations in {STEPS} steps of {launches} launches");
    }
}
