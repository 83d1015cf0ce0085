//! Trains a network of your own on numbers of your own, points of a spiral, and draws from it.
use denoir::prelude::*;

/// Predicts the noise in points `x [N, 1, 1, 2]` at timesteps `t [N]`.
pub fn net(s: &Scope, x: &Tensor, t: &Tensor, _told: Told) -> Tensor {
    let time = timestep_embedding(t, 32, false, 1.0, 1e4);
    let mut hidden = concat(&[&x.reshape([t.elements(), 2]), &time]);
    for layer in 0..3 {
        hidden = activation(&linear(&s.sub(layer), &hidden, 128), Activation::Silu);
    }
    linear(&s.sub("out"), &hidden, 2).reshape([t.elements(), 1, 1, 2])
}

pub fn train(steps: u64, schedule: Schedule) -> Result<Trainer> {
    let options = TrainOptions { lr: 3e-3, lr_schedule: LrSchedule::Cosine, steps, ..Default::default() };
    let points = Input::<f32, 4>::new("points", [256, 1, 1, 2]);
    let mut trainer = Trainer::new(&Device::open("cpu")?, options, move |scope, batch| {
        let (noisy, noise, t) = batch.noised(&batch.input(points), &schedule);
        mse(&net(scope, &noisy, &t, None.into()), &noise, None)
    })?;
    while trainer.done() < steps {
        let angles = (0..256).map(|i| 10.0 * ((trainer.done() * 256 + i) as f64 * 0.618_034).fract() as f32);
        let spiral: Vec<f32> = angles.flat_map(|a| [a * a.cos() / 10.0, a * a.sin() / 10.0]).collect();
        let outcome = trainer.step(|batch| batch.write(points, &spiral))?;
        outcome.iter().filter(|outcome| outcome.step % 500 == 0).for_each(|outcome| println!("{outcome}"));
    }
    Ok(trainer)
}

fn main() -> Result<()> {
    let process = Scheduler::ddpm(200, [1e-4, 0.05], Variance::FixedSmall, 0.0);
    let denoiser = train(3000, process.schedule())?.denoiser(&net, [1, 1, 2]);
    let drawn = denoiser.draw(&SampleOptions::new(process, 200, 1), 1000)?;
    let at = |p: &[f32]| [(30.0 + 24.0 * p[0]) as i32, (12.0 - 12.0 * p[1]) as i32];
    for y in 0..24 {
        let dot = |x| if drawn.chunks(2).any(|p| at(p) == [x, y]) { '*' } else { ' ' };
        println!("{}", (0..60).map(dot).collect::<String>());
    }
    Ok(())
}
