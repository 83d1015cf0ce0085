//! A tape: record once, run many times, gradients included. Fits a parabola to points.
//!
//! `cargo run --release --example tape`

use denoir::prelude::*;

fn main() -> Result<()> {
    fit(300).map(drop)
}

/// Gradient descent on the squared error of `a x^2 + b x + c`; returns a, b and c.
pub fn fit(steps: usize) -> Result<[f32; 3]> {
    let device = Device::open("cpu")?;
    let points: Vec<f32> = (0..16).map(|i| i as f32 / 7.5 - 1.0).collect();
    let wanted: Vec<f32> = points.iter().map(|x| 2.0 * x * x - 0.5 * x + 1.0).collect();

    // Recording computes nothing: a tensor is a shape and a place on the tape. Those in stores are given
    // values by name, and gradients reach variables.
    let tape = Tape::new();
    let [x, y] = ["x", "y"].map(|store| tape.stored(store, 0, [16, 1]));
    let [a, b, c] = ["a", "b", "c"].map(|store| tape.variable(store, 0, [1]));
    let curve = add(&add(&mul(&mul(&x, &x), &a), &mul(&x, &b)), &c);
    let loss = mse(&curve, &y, None);
    let gradients = tape.backward(&loss);
    let [da, db, dc] = [&a, &b, &c].map(|v| gradients.get(v).expect("the loss depends on it"));

    // Compiled once: temporaries share memory, and launches that no output needs are dropped.
    let plan = Plan::new(&tape, &[&loss, da, db, dc], &device);
    let mut program = Program::compile(&plan, &device, &[], Sharing::Shared)?;
    let launches: Vec<&str> = program.compiled().iter().map(|launch| launch.name).collect();
    println!("{} launches: {}", launches.len(), launches.join(", "));

    program.write("x", &points)?;
    program.write("y", &wanted)?;
    let mut values = [0.0_f32; 3];
    for step in 0..=steps {
        for (store, value) in ["a", "b", "c"].iter().zip(values) {
            program.write(store, &[value])?;
        }
        program.run()?;
        if step % 50 == 0 {
            let [a, b, c] = values;
            let loss = program.read(&loss)?[0];
            println!("step {step:>3}: {a:.3} x^2 + {b:+.3} x + {c:.3}, squared error {loss:.6}");
        }
        for (value, gradient) in values.iter_mut().zip([da, db, dc]) {
            *value -= 0.3 * program.read(gradient)?[0];
        }
    }
    println!("the points lie on 2 x^2 - 0.5 x + 1");
    Ok(values)
}
