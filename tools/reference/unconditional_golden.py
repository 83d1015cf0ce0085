"""unconditional.safetensors: what diffusers' examples/unconditional_image_generation/train_unconditional.py does with
the arguments of its documentation (--center_crop --random_flip --use_ema, resolution 64, 8,189 images), by the objects
that the script makes: its network's configuration, optimiser, schedules and pictures.
"""
import argparse
import math

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torchvision import transforms

import unet_golden

# The script's defaults.
ARGS = argparse.Namespace(
    resolution=64, train_batch_size=16, eval_batch_size=16, num_epochs=100, gradient_accumulation_steps=1, learning_rate=1e-4,
    lr_scheduler="cosine", lr_warmup_steps=500, adam_beta1=0.95, adam_beta2=0.999, adam_weight_decay=1e-6, adam_epsilon=1e-8,
    ema_inv_gamma=1.0, ema_power=3 / 4, ema_max_decay=0.9999, ddpm_num_steps=1000, ddpm_num_inference_steps=1000,
    ddpm_beta_schedule="linear", prediction_type="epsilon", checkpointing_steps=500)
IMAGES = 8189
N_PARAM, N_STEP, SIDE = 101, 12, 16


def network():
    return UNet2DModel(
        sample_size=ARGS.resolution, in_channels=3, out_channels=3, layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4)


def optimiser(parameters):
    return torch.optim.AdamW(parameters, lr=ARGS.learning_rate, betas=(ARGS.adam_beta1, ARGS.adam_beta2),
                             weight_decay=ARGS.adam_weight_decay, eps=ARGS.adam_epsilon)


def moving_average(parameters):
    return EMAModel(parameters, decay=ARGS.ema_max_decay, use_ema_warmup=True, inv_gamma=ARGS.ema_inv_gamma, power=ARGS.ema_power)


def steps():
    return math.ceil(IMAGES / ARGS.train_batch_size) * ARGS.num_epochs


def learning_rate(opt):
    return get_scheduler(ARGS.lr_scheduler, opt, num_warmup_steps=ARGS.lr_warmup_steps * ARGS.gradient_accumulation_steps,
                         num_training_steps=steps())


def rates(out):
    p = torch.nn.Parameter(torch.zeros(1))
    opt = optimiser([p])
    lr = learning_rate(opt)
    wanted = {*range(20), 250, 499, 500, 501, 5000, 25_000, 40_000, steps() - 2, steps() - 1}
    rows = {}
    for step in range(steps()):
        if step in wanted:
            rows[step] = lr.get_last_lr()[0]
        opt.step()
        lr.step()
    out["lr/step"] = torch.tensor(list(rows), dtype=torch.int32)
    out["lr/value"] = torch.tensor(list(rows.values()), dtype=torch.float64)
    ema = moving_average([p])
    counted = [*range(1, 30), 100, 1000, 10_000, 51_200, 215_000, 216_000, 1_000_000]
    out["ema/step"] = torch.tensor(counted, dtype=torch.int32)
    out["ema/decay"] = torch.tensor([ema.get_decay(s) for s in counted], dtype=torch.float64)


def updates(out):
    """The first steps of the script in f64, from weights as small as these learning rates."""
    torch.manual_seed(5)
    start = torch.randn(N_PARAM) * 1e-6
    grads = torch.randn(N_STEP, N_PARAM) * torch.logspace(-2, 1, N_STEP)[:, None]
    p = torch.nn.Parameter(start.double())
    opt = optimiser([p])
    lr, ema = learning_rate(opt), moving_average([p])
    rows = {k: [] for k in ["norm", "param", "m", "v", "ema"]}
    for g in grads:
        p.grad = g.double().clone()
        rows["norm"].append(torch.nn.utils.clip_grad_norm_([p], 1.0))
        opt.step()
        lr.step()
        ema.step([p])
        rows["param"].append(p.detach().clone())
        rows["m"].append(opt.state[p]["exp_avg"].clone())
        rows["v"].append(opt.state[p]["exp_avg_sq"].clone())
        rows["ema"].append(ema.shadow_params[0].clone())
    out |= {"in/param": start, "in/grad": grads} | {f"step/{k}": torch.stack(v) for k, v in rows.items()}


def pictures(out):
    """PIL pictures through the script's transforms, but for the flip; values as bytes."""
    chain = transforms.Compose([
        transforms.Resize(SIDE, interpolation=transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(SIDE),
        transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    rng = np.random.default_rng(6)
    for name, (w, h) in dict(wide=(61, 40), tall=(41, 62), square=(33, 33), same=(16, 16), small=(9, 14), odd=(16, 19)).items():
        y, x = (v[..., None] / 7.0 for v in np.mgrid[:h, :w])
        phase = rng.uniform(0, 6, 3)
        soft = 128 + 80 * np.sin(x + phase) * np.cos(y * 1.3 - phase)
        pixels = np.clip(soft + rng.normal(0, 30, (h, w, 3)), 0, 255).astype(np.uint8)
        result = chain(Image.fromarray(pixels))
        out[f"picture/{name}/in"] = torch.from_numpy(pixels.astype(np.int32))
        out[f"picture/{name}/out"] = ((result.permute(1, 2, 0) + 1) * 127.5).round().to(torch.int32)


def write(path):
    out = {}
    rates(out)
    updates(out)
    pictures(out)
    with torch.device("meta"):
        config = unet_golden.config_json(network())
    scheduler = DDPMScheduler(num_train_timesteps=ARGS.ddpm_num_steps, beta_schedule=ARGS.ddpm_beta_schedule,
                              prediction_type=ARGS.prediction_type).config
    unet_golden.save(path, out, arguments=vars(ARGS), images=IMAGES, steps=steps(), config=config,
                     scheduler=dict(scheduler) | {"_use_default_values": sorted(scheduler["_use_default_values"])})  # a set's order
