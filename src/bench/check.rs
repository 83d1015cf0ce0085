//! A workload's output, loss and gradients for weights and inputs from a file, so that another framework's
//! can be held against them.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};

use super::workload::Workload;
use crate::checkpoint::{Named, write_tensors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::latent_file::transposed;
use crate::models::vae::{self, Reconstruction};
use crate::nn::{self, Params, Scope};
use crate::ops::arithmetic::add;
use crate::ops::gaussian_kl::gaussian_kl;
use crate::ops::loss::mse;
use crate::ops::reparameterise::{Noise, reparameterise};
use crate::program::{Plan, Program, Sharing};
use crate::state::State;
use crate::tape::{Tape, Tensor};
use crate::tensor::Shape;
use crate::weights::summed;

/// The metadata entry of a result, which names the workload and the device.
const KEY: &str = "denoir_bench_check";

/// A file of weights and inputs.
struct InputFile<'a> {
    shown: String,
    file: SafeTensors<'a>,
}

impl InputFile<'_> {
    fn wrong(&self, what: String) -> Error {
        Error::new(format!("{}: {what}", self.shown))
            .hint("`denoir bench check --help` says what it must hold")
    }

    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.file.tensor(name).map_err(|_| self.wrong(format!("there is no tensor {name}")))?;
        // The data need not be aligned in the file.
        let values = match (tensor.dtype(), name) {
            (Dtype::F32, _) => bytemuck::pod_collect_to_vec(tensor.data()),
            (Dtype::I64, "in/t") => {
                bytemuck::pod_collect_to_vec::<u8, i64>(tensor.data()).iter().map(|&t| t as f32).collect()
            }
            (other, _) => return Err(self.wrong(format!("{name} is {other:?}, not F32"))),
        };
        Ok((tensor.shape().to_vec(), values))
    }

    /// A tensor of this shape. `[N, C, H, W]` comes back channels last.
    fn of_shape(&self, name: &str, wanted: &[usize]) -> Result<Vec<f32>> {
        let (shape, values) = self.tensor(name)?;
        if shape != wanted {
            return Err(self.wrong(format!("{name} is {shape:?}, not {wanted:?}")));
        }
        Ok(match *wanted {
            [_, c, h, w] => transposed(&values, [h, w, c], true),
            _ => values,
        })
    }

    /// The parameters, flat.
    fn parameters(&self, params: &Params) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; params.elements()];
        for spec in params.specs() {
            let (shape, values) = self.tensor(&spec.name)?;
            if shape != spec.file_shape() {
                let wanted = spec.file_shape();
                return Err(self.wrong(format!("{} is {shape:?}, not {wanted:?}", spec.name)));
            }
            spec.for_each_index(|here, there| flat[spec.first + here] = values[there]);
        }
        Ok(flat)
    }

    /// Refuses tensors that the workload does not use.
    fn check_surplus(&self, params: &Params, inputs: &[(&str, Vec<f32>)]) -> Result<()> {
        let used = |name: &str| match name.strip_prefix("in/") {
            Some(store) => inputs.iter().any(|(input, _)| *input == store),
            None => params.find(name).is_some(),
        };
        match self.file.names().into_iter().find(|name| !used(name)) {
            Some(name) => Err(self.wrong(format!("{name} is no parameter and no input of this workload"))),
            None => Ok(()),
        }
    }
}

/// A recorded forward pass, and its inputs: stores and their values.
struct Recorded {
    out: Tensor,
    loss: Tensor,
    inputs: Vec<(&'static str, Vec<f32>)>,
}

/// Reads the weights and inputs of `given`, and writes output, loss and gradients to `out`. The batch size is
/// that of the inputs; there is no dropout. `denoir bench check --help` describes both files.
pub(crate) fn compute(workload: &Workload, device: &Device, given: &Path, out: &Path) -> Result<()> {
    let shown = given.display().to_string();
    let whole = summed::read(given, u64::MAX)
        .map_err(|e| Error::new(format!("cannot read {shown}")).hint("check the path").caused_by(e))?;
    let (file, _) = whole.parse().map_err(|e| {
        Error::new(format!("{shown} is no safetensors file")).hint("write it again").caused_by(e)
    })?;
    let given = InputFile { shown, file };
    let mut workload = workload.clone();
    (workload.recipe.unet.dropout, workload.recipe.dit.dropout) = (0.0, 0.0);
    let params = workload.params();

    let tape = Tape::new();
    // Nothing draws from it; the scope wants one to know that it trains.
    let state = tape.stored_u32("state", [State::WORDS]);
    let scope = Scope::training(&tape, &params, &state);
    let record = if workload.is_vae() { autoencoder } else { noise_prediction };
    let recorded = record(&workload, &scope, &given)?;
    given.check_surplus(&params.borrow(), &recorded.inputs)?;
    nn::place_gradients(&tape, &tape.backward(&recorded.loss));
    let plan = Plan::new(&tape, &[&recorded.out, &recorded.loss], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared)?;

    let params = params.borrow();
    nn::write_parameters(&program, &given.parameters(&params)?)?;
    for (store, values) in &recorded.inputs {
        program.write(store, values)?;
    }
    program.run()?;

    let [n, h, w, c] = recorded.out.shape().of_rank("check");
    let image = transposed(&program.read(&recorded.out)?, [h, w, c], false);
    let loss = program.read(&recorded.loss)?;
    let mut flat = vec![0.0_f32; params.elements()];
    device.read(program.store(nn::GRADIENTS), 0, bytemuck::cast_slice_mut(&mut flat))?;
    let gradients: Vec<(String, Vec<usize>, Vec<f32>)> = params
        .specs()
        .iter()
        .map(|spec| {
            let mut values = vec![0.0; spec.shape.elements()];
            spec.for_each_index(|here, there| values[there] = flat[spec.first + here]);
            (format!("grad/{}", spec.name), spec.file_shape(), values)
        })
        .collect();
    let mut tensors: Vec<Named> = vec![("out", vec![n, c, h, w], &image), ("loss", vec![1], &loss)];
    tensors.extend(gradients.iter().map(|(name, shape, values)| (name.as_str(), shape.clone(), &values[..])));
    write_tensors(out, &tensors, KEY, format!("{} on {}", workload.name, device.describe()))
}

fn noise_prediction(workload: &Workload, scope: &Scope, given: &InputFile) -> Result<Recorded> {
    let [h, w, c] = workload.image();
    let n = given.tensor("in/x")?.0.first().copied().unwrap_or(0);
    let shape = [n, c, h, w];
    let mut inputs =
        vec![("x", given.of_shape("in/x", &shape)?), ("target", given.of_shape("in/target", &shape)?)];
    let tape = scope.tape();
    let [x, target] = ["x", "target"].map(|store| tape.stored(store, 0, [n, h, w, c]));
    let t = tape.stored("t", 0, [n]);
    if workload.has_timestep() {
        inputs.push(("t", given.of_shape("in/t", &[n])?));
    }
    let predicted = (workload.model())(scope, &x, &t, None.into());
    let loss = mse(&predicted, &target, None);
    Ok(Recorded { out: predicted, loss, inputs })
}

fn autoencoder(workload: &Workload, scope: &Scope, given: &InputFile) -> Result<Recorded> {
    let (recipe, config) = (&workload.recipe, &workload.recipe.vae);
    let [h, w, c] = workload.image();
    // A net of linear layers alone takes vectors too.
    let (shape, _) = given.tensor("in/x")?;
    let n = shape.first().copied().unwrap_or(0);
    let wanted = if shape.len() == 2 && c == 1 { vec![n, h * w] } else { vec![n, c, h, w] };
    let images = given.of_shape("in/x", &wanted)?;
    let tape = scope.tape();
    let x = tape.stored("x", 0, [n, h, w, c]);
    let (mean, log_var) = vae::encode(config, scope, &x);
    let mut inputs = vec![("x", images)];
    let mut z = mean.clone();
    let mut kl = None;
    if let Some(log_var) = &log_var {
        let eps = tape.stored("eps", 0, mean.shape().clone());
        inputs.push(("eps", given.of_shape("in/eps", &file_shape(mean.shape()))?));
        z = reparameterise(&mean, log_var, Noise::Given(&eps));
        kl = Some(gaussian_kl(&mean, log_var));
    }
    let raw = vae::decode(config, scope, &z, [h, w, c]);
    let reconstruction = vae::loss(&recipe.vae, &raw, &x, recipe.reconstruction);
    let loss = kl.map_or_else(|| reconstruction.clone(), |kl| add(&reconstruction, &kl));
    let out = match recipe.reconstruction {
        Reconstruction::Bce => raw,
        _ => vae::image_of(&recipe.vae, &raw, recipe.reconstruction),
    };
    Ok(Recorded { out, loss, inputs })
}

/// The shape that a latent has in PyTorch.
fn file_shape(shape: &Shape) -> Vec<usize> {
    match *shape.dims() {
        [n, h, w, c] => vec![n, c, h, w],
        ref other => other.to_vec(),
    }
}
