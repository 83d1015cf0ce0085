"""Goldens of files: what PyTorch and diffusers save, and what their models answer.

    torch_save.bin           tensors of every type of weights; one is a transposed view
    tiny_ddpm/               the pipeline of diffusers' own tests (seed 0), as save_pretrained writes it
    tiny_ddpm.safetensors    noise/x, noise/step: torch's generator at seed 0, as the pipeline draws it; f64/eps: the model at
                             t = 500 in f64; f32/ddpm, f32/ddim: the images of the pipelines, two steps, [3, 8, 8]
    tiny_ldm/                an LDMPipeline of random weights: VQModel, UNet2DModel, DDIMScheduler as latent diffusion has it
    tiny_ldm.safetensors     f32/image: its picture of seed 0 in four steps, [3, 16, 16]; f64/image: the same with the models in f64
    tiny_ldm_kl/             the same around an AutoencoderKL, without attention in the middle and the layers beside the latents
    tiny_ldm_kl.safetensors  its picture
    vq.safetensors           a VQModel: param/<name>, in/x; f64/h (before the codebook), f64/out (h decoded)
"""
import copy
import json
import math

import torch
from diffusers import (AutoencoderKL, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, LDMPipeline, UNet2DModel,
                       VQModel)

import unet_golden


def write(golden):
    torch_save(golden / "torch_save.bin")
    tiny(golden)
    levels = dict(block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
                  norm_num_groups=2, latent_channels=3, sample_size=16, scaling_factor=0.6)
    ldm(golden / "tiny_ldm", VQModel(vq_embed_dim=3, num_vq_embeddings=31, **levels))
    ldm(golden / "tiny_ldm_kl", AutoencoderKL(layers_per_block=2, use_quant_conv=False, use_post_quant_conv=False,
                                              mid_block_add_attention=False, **levels))
    vq(golden / "vq.safetensors")


def torch_save(path):
    torch.save({"linear.weight": torch.arange(6.0).reshape(3, 2),
                "bf16": torch.tensor([1.0, -0.5, 3.14159]).bfloat16(),
                "f16": torch.tensor([[1.0, -2.0], [0.5, 65504.0]]).half(),
                "f64": torch.tensor(0.1, dtype=torch.float64),
                "transposed": torch.arange(6.0).reshape(2, 3).t(),
                "parameter": torch.nn.Parameter(torch.tensor([7.0]))}, path)


def tiny(golden):
    torch.manual_seed(0)
    unet = UNet2DModel(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    unet.eval()
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(golden / "tiny_ddpm")
    run = lambda p: p(num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(0), output_type="np").images[0]
    ddpm = run(pipeline)
    ddim_pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    ddim_pipeline.set_progress_bar_config(disable=True)
    ddim = run(ddim_pipeline)
    # As printed in the library's tests (DDPM: to more digits than there).
    published = [0, .9996672, .00329116, 1, .9995991, 1, .0060907, .00115037, 0]
    assert abs(ddpm[-3:, -3:, -1].flatten() - published).max() < 2e-6, ddpm[-3:, -3:, -1]
    generator = torch.Generator("cpu").manual_seed(0)
    x, step = (torch.randn(1, 3, 8, 8, generator=generator) for _ in range(2))
    f64 = copy.deepcopy(unet).double()
    f64.time_proj = unet_golden.TimestepsF64(unet.config)
    with torch.no_grad():
        eps = f64(x.double(), 500).sample
    image = lambda a: torch.from_numpy(a).permute(2, 0, 1).contiguous()
    unet_golden.save(golden / "tiny_ddpm.safetensors",
                     {"noise/x": x, "noise/step": step, "f64/eps": eps, "f32/ddpm": image(ddpm), "f32/ddim": image(ddim)})


def ldm(folder, vae):
    unet = UNet2DModel(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=8, attention_head_dim=4,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
    pipeline = LDMPipeline(vqvae=vivid(vae, 43).eval(), unet=vivid(unet, 42).eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)

    def picture():
        generator = torch.Generator("cpu").manual_seed(0)
        return pipeline(batch_size=1, num_inference_steps=4, generator=generator, output_type="np").images[0]

    f32 = picture()
    # The first noise is drawn in f32 and widened, as the pictures of the seed are.
    module = __import__("sys").modules[LDMPipeline.__module__]
    draw, decode, margins = module.randn_tensor, vae.decode, []
    module.randn_tensor = lambda *args, **more: draw(*args, **more).double()

    def near(latents):
        if isinstance(vae, VQModel):
            vectors = latents.permute(0, 2, 3, 1).reshape(-1, 3)
            distances = torch.cdist(vectors, vae.quantize.embedding.weight).sort(1).values
            margins.append((distances[:, 1] - distances[:, 0]).min().item())
        return decode(latents)

    vae.decode = near
    unet.time_proj = unet_golden.TimestepsF64(unet.config)
    unet.double(), vae.double()
    f64 = picture()
    module.randn_tensor, vae.decode = draw, decode
    # No vector is as near to two codes as rounding is, and most of the picture is neither black nor white.
    assert min(margins, default=1.0) > 1e-3, margins
    assert ((f64 > 0) & (f64 < 1)).mean() > 0.5, ((f64 > 0) & (f64 < 1)).mean()
    print(folder.name, "f32 off f64 by", abs(f32 - f64).max(), "margins", margins)
    image = lambda a: torch.from_numpy(a).permute(2, 0, 1).contiguous()
    unet_golden.save(folder.with_suffix(".safetensors"), {"f32/image": image(f32).float(), "f64/image": image(f64).double()})


def vivid(model, seed):
    """Weights by which every part matters, as in unet_golden."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "quantize" in name:
                p.copy_(torch.randn(p.shape))
            elif p.ndim == 1:
                gain = "norm" in name and name.endswith("weight")
                p.copy_(torch.randn(p.shape) * (0.4 if gain else 0.3) + (1.0 if gain else 0.0))
            else:
                p.copy_(torch.randn(p.shape) / math.sqrt(p[0].numel()))
    return model


def vq(path):
    model = vivid(VQModel(block_out_channels=(4, 8), down_block_types=["DownEncoderBlock2D"] * 2,
                          up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=2, latent_channels=3, vq_embed_dim=2,
                          num_vq_embeddings=19, sample_size=8), 300)
    x = torch.randn(3, 3, 8, 8).clamp(-1, 1)
    params = {f"param/{n}": p.detach().clone() for n, p in model.named_parameters()}

    def run(dtype):
        m = copy.deepcopy(model).to(dtype)
        with torch.no_grad():
            h = m.encode(x.to(dtype)).latents
            return m, h, m.decode(h).sample

    _, h32, out32 = run(torch.float32)
    m, h, out = run(torch.float64)
    # No vector may be as near to two codes as rounding is.
    distances = torch.cdist(h.permute(0, 2, 3, 1).reshape(-1, 2), m.quantize.embedding.weight).sort(1).values
    assert (distances[:, 1] - distances[:, 0]).min() > 1e-4
    error = {"h": unet_golden.relative(h32.double(), h), "out": unet_golden.relative(out32.double(), out)}
    unet_golden.save(path, params | {"in/x": x, "f64/h": h, "f64/out": out}, config=json.loads(model.to_json_string()),
                     f32_error=error, zero_grad=[])


def names():
    """{model: {"config", "parameters", "tensors"}} of autoencoders; counted elsewhere too."""
    four = dict(down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4)
    book = {}
    for name, kind, config, count in [
        ("stable_diffusion_1", AutoencoderKL,
         dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=512, **four), 83_653_863),
        ("autoencoder_kl", AutoencoderKL, {}, 563_175),
        ("vq_model", VQModel, dict(vq_embed_dim=5, num_vq_embeddings=99), None),
    ]:
        with torch.device("meta"):
            model = kind(**config)
        tensors = [[n, list(p.shape)] for n, p in model.state_dict().items()]
        numbers = sum(math.prod(shape) for _, shape in tensors)
        assert numbers == (count or numbers), (name, numbers)
        book[name] = {"config": json.loads(model.to_json_string()), "parameters": numbers, "tensors": tensors}
    return book
