"""Walks of every diffusers scheduler over many options, in f64: tests/golden/schedulers.json.

The library keeps its tables in f32. Here its own source is run with every f32 replaced by f64 (and the
quadrature of LMS at 1e-13), so that what is compared are the formulas and not their rounding. The model is
x t / (t + 1) of the scaled sample; the n-th noise and the first sample are sines (see `wave`).
"""
import json
import math
import pathlib
import sys
import types

import diffusers
import torch

SHAPE = (2, 3, 4, 4)
SIZE = math.prod(SHAPE)
SEEN = [0, 17, 50, 95]  # elements that are written

DPM, UNI = "DPMSolverMultistep", "UniPCMultistep"
SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
V, SAMPLE = dict(prediction_type="v_prediction"), dict(prediction_type="sample")
TRAILING, LEADING, LINSPACE = (dict(timestep_spacing=s) for s in ("trailing", "leading", "linspace"))
KARRAS, EXPONENTIAL = dict(use_karras_sigmas=True), dict(use_exponential_sigmas=True)
COSINE, LOWEST = dict(beta_schedule="squaredcos_cap_v2"), dict(final_sigmas_type="sigma_min")
DYNAMIC = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
FREE = dict(clip_sample=False)

# (class, steps, options, arguments of step)
CASES = [
    ("DDPM", 10, {}, {}),
    ("DDPM", 7, dict(variance_type="fixed_large"), {}),
    ("DDPM", 5, dict(variance_type="fixed_small_log", beta_schedule="scaled_linear"), {}),
    ("DDPM", 6, COSINE, {}),
    ("DDPM", 6, dict(beta_schedule="sigmoid", **FREE), {}),
    ("DDPM", 6, dict(beta_schedule="laplace"), {}),
    ("DDPM", 6, V, {}),
    ("DDPM", 6, dict(clip_sample_range=0.7, **SAMPLE), {}),
    ("DDPM", 6, DYNAMIC, {}),
    ("DDPM", 6, dict(variance_type="fixed_large", **TRAILING), {}),
    ("DDPM", 6, dict(steps_offset=1), {}),
    ("DDPM", 6, LINSPACE, {}),
    ("DDPM", 6, SNR, {}),
    ("DDPM", 4, dict(trained_betas=[0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], num_train_timesteps=8), {}),
    ("DDIM", 10, {}, {}),
    ("DDIM", 6, FREE, {}),
    ("DDIM", 6, {}, dict(eta=0.5)),
    ("DDIM", 6, FREE, dict(eta=1.0)),
    ("DDIM", 6, {}, dict(use_clipped_model_output=True)),
    ("DDIM", 6, dict(set_alpha_to_one=False, **SD), {}),
    ("DDIM", 6, V, {}),
    ("DDIM", 6, SAMPLE, dict(eta=0.3)),
    ("DDIM", 6, DYNAMIC, {}),
    ("DDIM", 6, LINSPACE, {}),
    ("DDIM", 7, TRAILING, {}),
    ("DDIM", 6, SNR, {}),
    ("DDIM", 6, COSINE, {}),
    ("DDIMInverse", 8, {}, {}),
    ("DDIMInverse", 6, dict(set_alpha_to_one=False, **V, **FREE), {}),
    ("DDIMInverse", 6, dict(set_alpha_to_one=False, **SAMPLE), {}),
    ("DDIMInverse", 6, dict(**TRAILING, **FREE), {}),
    ("EulerDiscrete", 10, {}, {}),
    ("EulerDiscrete", 6, V, {}),
    ("EulerDiscrete", 6, SAMPLE, {}),
    ("EulerDiscrete", 9, KARRAS, {}),
    ("EulerDiscrete", 6, dict(sigma_min=0.05, sigma_max=20.0, **KARRAS), {}),
    ("EulerDiscrete", 6, EXPONENTIAL, {}),
    ("EulerDiscrete", 6, TRAILING, {}),
    ("EulerDiscrete", 6, dict(**LEADING, **SD), {}),
    ("EulerDiscrete", 6, LOWEST, {}),
    ("EulerDiscrete", 6, dict(interpolation_type="log_linear"), {}),
    ("EulerDiscrete", 6, SNR, {}),
    ("EulerAncestralDiscrete", 10, {}, {}),
    ("EulerAncestralDiscrete", 6, V, {}),
    ("EulerAncestralDiscrete", 6, dict(**LEADING, **SD), {}),
    ("EulerAncestralDiscrete", 6, SNR, {}),
    ("HeunDiscrete", 7, {}, {}),
    ("HeunDiscrete", 5, V, {}),
    ("HeunDiscrete", 5, SAMPLE, {}),
    ("HeunDiscrete", 5, KARRAS, {}),
    ("HeunDiscrete", 5, EXPONENTIAL, {}),
    ("HeunDiscrete", 5, dict(clip_sample=True, clip_sample_range=0.8), {}),
    ("HeunDiscrete", 5, dict(beta_schedule="exp", num_train_timesteps=100, **LEADING), {}),
    ("LMSDiscrete", 10, {}, {}),
    ("LMSDiscrete", 7, KARRAS, {}),
    ("LMSDiscrete", 6, EXPONENTIAL, {}),
    ("LMSDiscrete", 6, V, {}),
    ("LMSDiscrete", 6, dict(**TRAILING, **SAMPLE), {}),
    (DPM, 10, {}, {}),
    (DPM, 20, {}, {}),
    (DPM, 6, dict(solver_type="heun"), {}),
    (DPM, 6, dict(solver_order=1), {}),
    (DPM, 8, dict(solver_order=3), {}),
    (DPM, 16, dict(solver_order=3, **COSINE), {}),
    (DPM, 8, dict(algorithm_type="sde-dpmsolver++"), {}),
    (DPM, 6, dict(algorithm_type="sde-dpmsolver++", solver_type="heun", **V), {}),
    (DPM, 7, dict(algorithm_type="sde-dpmsolver++", solver_order=3), {}),
    (DPM, 6, V, {}),
    (DPM, 6, SAMPLE, {}),
    (DPM, 8, KARRAS, {}),
    (DPM, 6, dict(**KARRAS, **COSINE), {}),
    (DPM, 6, EXPONENTIAL, {}),
    (DPM, 6, DYNAMIC, {}),
    (DPM, 6, LOWEST, {}),
    (DPM, 6, dict(lower_order_final=False, **LOWEST), {}),
    (DPM, 6, dict(euler_at_final=True, **LOWEST), {}),
    (DPM, 6, TRAILING, {}),
    (DPM, 6, dict(**LEADING, **SD), {}),
    (DPM, 6, dict(lambda_min_clipped=-5.1, **COSINE), {}),
    (DPM, 6, SNR, {}),
    ("PNDM", 10, {}, {}),
    ("PNDM", 6, dict(skip_prk_steps=True), {}),
    ("PNDM", 6, dict(skip_prk_steps=True, set_alpha_to_one=True, **V), {}),
    ("PNDM", 8, dict(skip_prk_steps=True, **SD), {}),
    ("PNDM", 6, V, {}),
    ("PNDM", 6, dict(skip_prk_steps=True, **TRAILING), {}),
    ("PNDM", 1, dict(skip_prk_steps=True), {}),
    (UNI, 10, {}, {}),
    (UNI, 8, dict(solver_order=3), {}),
    (UNI, 6, dict(solver_type="bh1", **LOWEST), {}),
    (UNI, 6, dict(solver_order=1), {}),
    (UNI, 6, dict(predict_x0=False, **LOWEST), {}),
    (UNI, 6, dict(predict_x0=False, solver_order=3, **LOWEST, **V), {}),
    (UNI, 6, dict(disable_corrector=[0, 2]), {}),
    (UNI, 8, KARRAS, {}),
    (UNI, 8, dict(solver_order=3, **KARRAS, **LOWEST), {}),
    (UNI, 6, EXPONENTIAL, {}),
    (UNI, 6, dict(lower_order_final=False, solver_order=3, **LOWEST), {}),
    (UNI, 6, V, {}),
    (UNI, 6, SAMPLE, {}),
    (UNI, 6, DYNAMIC, {}),
    (UNI, 6, TRAILING, {}),
    (UNI, 6, SNR, {}),
]


def wave(number):
    """Numbers of about unit variance: the noise of draw `number`, or the first sample (-1)."""
    values = [1.7 * math.sin(12.9898 * (i + 1) + 78.233 * (number + 2)) for i in range(SIZE)]
    return torch.tensor(values).reshape(SHAPE)


FILES = {"EulerDiscrete": "euler_discrete", "EulerAncestralDiscrete": "euler_ancestral_discrete", "HeunDiscrete": "heun_discrete",
         "LMSDiscrete": "lms_discrete", DPM: "dpmsolver_multistep", UNI: "unipc_multistep", "DDIMInverse": "ddim_inverse"}


def in_f64(name):
    """The module of a scheduler with f64 wherever it says f32."""
    file = "scheduling_" + FILES.get(name, name.lower())
    source = (pathlib.Path(diffusers.__file__).parent / "schedulers" / f"{file}.py").read_text()
    source = source.replace("float32", "float64").replace("epsrel=1e-4", "epsrel=1e-13")
    module = types.ModuleType("f64." + file)
    module.__package__ = "diffusers.schedulers"
    sys.modules[module.__name__] = module  # where dataclasses look
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def walk(name, steps, options, arguments):
    """Options are those of the class, or what makes a scheduler of it."""
    module = in_f64(name)
    draws = 0

    def noise(*_, **__):
        nonlocal draws
        draws += 1
        return wave(draws - 1)

    module.randn_tensor = noise
    cls = getattr(module, name + "Scheduler")
    scheduler = options(cls) if callable(options) else cls(**options)
    scheduler.set_timesteps(steps)
    scaled = "Discrete" in name
    sample = wave(-1) * scheduler.init_noise_sigma
    path = []
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, t)
        if not path:
            path.append(seen)
        sample = scheduler.step(seen * t / (t + 1), t, sample, **arguments).prev_sample
        path.append(sample / (scheduler.sigmas[scheduler.step_index] ** 2 + 1) ** 0.5 if scaled else sample)
    assert all(torch.isfinite(x).all() for x in path), (name, options)
    row = lambda x: [float(f"{v:.12g}") for v in x.flatten()[SEEN].tolist() + [x.square().mean().sqrt().item()]]
    return {
        "steps": steps,
        "arguments": arguments,
        "config": scheduler.to_json_string(),
        "timesteps": [float(f"{float(t):.12g}") for t in scheduler.timesteps],
        "path": [row(x) for x in path],
    }


def main():
    torch.set_default_dtype(torch.float64)
    out = pathlib.Path(__file__).parents[2] / "tests/golden/schedulers.json"
    cases = [json.dumps(walk(*case)) for case in CASES]
    out.write_text('{"shape": %s, "seen": %s, "cases": [\n%s\n]}\n' % (list(SHAPE), SEEN, ",\n".join(cases)))
    print(f"{out}: {len(cases)} walks, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
