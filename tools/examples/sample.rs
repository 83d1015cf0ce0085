//! Samples the network of `own_network.rs`: three samplers, and the way from noise to the spiral.
//!
//! `cargo run --release --example sample`. The weights are kept in `spiral.safetensors`, which a second run
//! reads.

use std::path::Path;
use std::time::Instant;

use denoir::prelude::*;

#[allow(dead_code, reason = "its main is another example")]
#[path = "own_network.rs"]
mod own_network;

use own_network::{net, train};

fn main() -> Result<()> {
    show("spiral.safetensors".as_ref(), 3000)
}

/// Draws with the weights in `path`, which are trained and saved first where there are none.
pub fn show(path: &Path, steps: u64) -> Result<()> {
    let process = Scheduler::ddpm(200, [1e-4, 0.05], Variance::FixedSmall, 0.0);
    if !path.exists() {
        train(steps, process.schedule())?.save(path)?;
    }
    let denoiser = Denoiser::open(path, &Device::open("cpu")?, &net, [1, 1, 2])?;

    for (sampler, steps) in [("ddpm", 200), ("ddim", 20), ("dpmpp-2m", 10)] {
        let options = SampleOptions::new(process.named(sampler)?, steps, 1);
        let before = Instant::now();
        let points = denoiser.draw(&options, 1000)?;
        println!(
            "{sampler}, {steps} steps, {:.0} ms:\n{}",
            before.elapsed().as_secs_f64() * 1e3,
            plot(&points)
        );
    }

    // A sampler goes step by step, and tells the samples on their way.
    let options = SampleOptions::new(process.named("ddim")?, 20, 1);
    let mut sampler = Sampler::new(&denoiser, &options, 1000)?;
    sampler.run(0, &[], |row, t, sampler| {
        if row % 6 == 0 {
            println!("after the step from t = {t}:\n{}", plot(&sampler.current()?));
        }
        Ok(())
    })?;
    Ok(())
}

/// The square from (-1.25, -1) to (1.25, 1) in 24 lines of 60 characters, denser ones for more points.
fn plot(points: &[f32]) -> String {
    let mut counts = [[0_usize; 60]; 24];
    for point in points.chunks_exact(2) {
        let (x, y) = ((30.0 + 24.0 * point[0]) as usize, (12.0 - 12.0 * point[1]) as usize);
        if let Some(count) = counts.get_mut(y).and_then(|row| row.get_mut(x)) {
            *count += 1;
        }
    }
    let line = |row: &[usize; 60]| -> String {
        row.iter().map(|&count| [' ', '.', ':', '*'].get(count).copied().unwrap_or('#')).collect()
    };
    counts.iter().map(|row| line(row) + "\n").collect()
}
