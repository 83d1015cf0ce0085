"""The workloads' models in PyTorch, under the names that denoir's checkpoints have.

    python tools/compare/torch_models.py              parameter counts
    python tools/compare/torch_models.py --verify     the same weights in diffusers' models (needs diffusers)

`UNet` is the part of diffusers' UNet2DModel that the workloads use, written out, so that the comparison needs PyTorch only;
its defaults are UNet2DModel's (32 groups, eps 1e-5, heads of 8 channels, SiLU).  `loss_of` is the loss that a model
trains on.
"""
import math
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F


# ------------------------------------------------------------------------------------------------------------- U-Nets
def timestep_embedding(t, width, dtype, flip=True, shift=0.0):
    """The sinusoids of Vaswani et al. 2017 for t [N], as [N, width]: [cos, sin] where flipped.  In `dtype`, so that an f64
    run is exact; in f32 they are the numbers of diffusers."""
    half = width // 2
    k = torch.arange(half, dtype=dtype, device=t.device)
    angle = t[:, None].to(dtype) * torch.exp(-math.log(10000.0) * k / (half - shift))
    return torch.cat([angle.cos(), angle.sin()] if flip else [angle.sin(), angle.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, cin, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(cin, width), nn.Linear(width, width)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    def __init__(self, cin, cout, temb, c):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, cin, eps=c["eps"])
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb, cout)
        self.norm2 = nn.GroupNorm(32, cout, eps=c["eps"])
        self.dropout = nn.Dropout(c["dropout"])
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    def __init__(self, width, c):
        super().__init__()
        self.heads = width // (c["head_width"] or width)
        self.group_norm = nn.GroupNorm(32, width, eps=c["eps"])
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x):
        n, width, h, w = x.shape
        y = self.group_norm(x.reshape(n, width, h * w)).transpose(1, 2)
        q, k, v = (f(y).view(n, h * w, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, width)
        return self.to_out[0](y).transpose(1, 2).reshape(n, width, h, w) + x


class Resample(nn.Module):
    """Half the size by a strided convolution, or twice the size and a convolution."""

    def __init__(self, width, down, same=True):
        super().__init__()
        self.down, self.same = down, same
        self.conv = nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=1 if same else 0)

    def forward(self, x):
        if not self.down:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif not self.same:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Level(nn.Module):
    def __init__(self, cins, cout, temb, attention, c):
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(cin, cout, temb, c) for cin in cins])
        self.attentions = nn.ModuleList([Attention(cout, c) for _ in cins] if attention else [])

    def layers(self):
        """Each residual block with what follows it."""
        return zip(self.resnets, self.attentions if len(self.attentions) else [nn.Identity()] * len(self.resnets))


class UNet(nn.Module):
    def __init__(self, channels, size, widths, attention, eps=1e-5, head_width=8, flip=True, shift=0.0, same=True, dropout=0.0):
        """`attention`: whether a level has it, shallow to deep; the way up mirrors the way down.  `same`: whether
        convolutions of stride 2 pad both sides."""
        super().__init__()
        c = dict(eps=eps, head_width=head_width, dropout=dropout)
        self.image, self.sinusoids = (channels, size, size), dict(width=widths[0], flip=flip, shift=shift)
        temb, n, width = widths[0] * 4, len(widths), widths[0]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, temb)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, w in enumerate(widths):
            level = Level([width, w], w, temb, attention[i], c)
            if i < n - 1:
                level.downsamplers = nn.ModuleList([Resample(w, True, same)])
            self.down_blocks.append(level)
            width = w
        self.mid_block = Level([width, width], width, temb, False, c)
        self.mid_block.attentions = nn.ModuleList([Attention(width, c)])
        for i, w in enumerate(reversed(widths)):
            below = widths[max(n - 2 - i, 0)]
            level = Level([width + w, w + w, w + below], w, temb, attention[n - 1 - i], c)
            if i < n - 1:
                level.upsamplers = nn.ModuleList([Resample(w, False)])
            self.up_blocks.append(level)
            width = w
        self.conv_norm_out = nn.GroupNorm(32, width, eps=eps)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t):
        temb = self.time_embedding(timestep_embedding(t, dtype=x.dtype, **self.sinusoids))
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for resnet, attention in level.layers():
                h = attention(resnet(h, temb))
                skips.append(h)
            if hasattr(level, "downsamplers"):
                h = level.downsamplers[0](h)
                skips.append(h)
        mid = self.mid_block
        h = mid.resnets[1](mid.attentions[0](mid.resnets[0](h, temb)), temb)
        for level in self.up_blocks:
            for resnet, attention in level.layers():
                h = attention(resnet(torch.cat([h, skips.pop()], dim=1), temb))
            if hasattr(level, "upsamplers"):
                h = level.upsamplers[0](h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class ArenaBlock(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(16, cin), nn.GroupNorm(16, cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.res_conv = nn.Conv2d(cin, cout, 1, bias=False) if cin != cout else nn.Identity()

    def forward(self, x):
        return self.res_conv(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class ArenaUNet(nn.Module):
    """The "Inference Arena" simplified Stable Diffusion U-Net, as published with Meganeura 0.2 (`sd_unet`, small): no
    timestep, no attention, no biases in convolutions."""

    def __init__(self, channels=4, size=32, widths=(64, 128, 256)):
        super().__init__()
        self.image, width = (channels, size, size), widths[0]
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.enc, self.down, self.dec = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for w in widths:
            self.enc.append(ArenaBlock(width, w))
            width = w
        for w in widths[:-1]:
            self.down.append(nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False))
        self.mid = ArenaBlock(width, width)
        for w in reversed(widths):
            self.dec.append(ArenaBlock(width + w, w))
            width = w
        self.norm_out = nn.GroupNorm(16, width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1, bias=False)

    def forward(self, x, t=None):
        h, skips = self.conv_in(x), []
        for i, block in enumerate(self.enc):
            h = block(h)
            skips.append(h)
            if i < len(self.down):
                h = self.down[i](h)
        h = self.mid(h)
        for i, block in enumerate(self.dec):
            if i:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1))
        return self.conv_out(F.silu(self.norm_out(h)))


# --------------------------------------------------------------------------------------------------------------- VAEs
class Relu(nn.Module):
    """ReLU, and the layer whose bias moves its input (torch_check.py keeps values off the kink with it)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]  # in a list, so that it is no part of this module

    def forward(self, x):
        return F.relu(x)


class VaeBlock(nn.Module):
    """relu(gn(conv(relu(gn(conv(x))))) + x), x through a 1x1 convolution where the widths differ."""

    def __init__(self, cin, cout):
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(cin, cout, 3, padding=1), nn.GroupNorm(32, cout)
        self.conv2, self.gn2 = nn.Conv2d(cout, cout, 3, padding=1), nn.GroupNorm(32, cout)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.relu1, self.relu2 = Relu(self.gn1), Relu(self.gn2)

    def forward(self, x):
        return self.relu2(self.gn2(self.conv2(self.relu1(self.gn1(self.conv1(x))))) + self.skip(x))


def divergence(mean, log_var):
    """KL divergence from N(0, 1), summed over an image, averaged over the batch."""
    return -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp()) / mean.shape[0]


class Vae(nn.Module):
    def forward(self, x, eps):
        """What the decoder gives, mean and log-variance of the latent."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + torch.exp(0.5 * log_var) * eps), mean, log_var


class ConvVae(Vae):
    """64x64x3 to 8x8x4 and back: a level is a block and a convolution of stride 2, or a transposed one and a block."""

    def __init__(self, channels=3, size=64, widths=(64, 128, 256), latent=4):
        super().__init__()
        self.image, width, encoder = (channels, size, size), channels, []
        self.latent = (latent, size >> len(widths), size >> len(widths))
        for w in widths:
            encoder += [VaeBlock(width, w), nn.Conv2d(w, w, 3, stride=2, padding=1)]
            width = w
        encoder.append(nn.Conv2d(width, 2 * latent, 3, padding=1))
        decoder = [nn.Conv2d(latent, width, 3, padding=1)]
        for w in [*reversed(widths[:-1]), widths[0]]:
            decoder += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), VaeBlock(width, w)]
            width = w
        decoder += [nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    @staticmethod
    def objective(out, x):
        decoded, mean, log_var = out
        return F.mse_loss(decoded, x, reduction="sum") / x.shape[0] + divergence(mean, log_var)


class MlpVae(Vae):
    """784-512-256-(2 + 2) and back; the decoder gives logits.  Images are in [-1, 1]: (x + 1) / 2 is a probability."""

    def __init__(self, pixels=784, widths=(512, 256), latent=2):
        super().__init__()
        self.image, self.latent = (pixels,), (latent,)

        def layers(widths):
            made = []
            for cin, cout in zip(widths, widths[1:]):
                layer = nn.Linear(cin, cout)
                made += [layer, Relu(layer)]
            return nn.Sequential(*made[:-1])

        self.encoder = layers([pixels, *widths, 2 * latent])
        self.decoder = layers([latent, *reversed(widths), pixels])

    @staticmethod
    def objective(out, x):
        logits, mean, log_var = out
        entropy = F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="sum")
        return entropy / x.shape[0] + divergence(mean, log_var)


# ------------------------------------------------------------------------------------------------ diffusion transformer
class DitBlock(nn.Module):
    """diffusers' BasicTransformerBlock with adaptive layer norm zero, and embeddings of its own."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        emb = nn.Module()
        emb.timestep_embedder = TimeEmbedding(256, d)
        emb.class_embedder = nn.Module()
        emb.class_embedder.embedding_table = nn.Embedding(1, d)  # of no class
        self.norm1 = nn.Module()
        self.norm1.emb, self.norm1.linear = emb, nn.Linear(d, 6 * d)
        self.attn1 = nn.Module()
        self.attn1.to_q, self.attn1.to_k, self.attn1.to_v = (nn.Linear(d, d) for _ in range(3))
        self.attn1.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(4 * d, d)])
        self.ff.net[0].proj = nn.Linear(d, 4 * d)

    def condition(self, sinusoids):
        emb = self.norm1.emb
        return emb.timestep_embedder(sinusoids) + emb.class_embedder.embedding_table.weight

    def forward(self, x, sinusoids):
        n, tokens, d = x.shape
        m = self.norm1.linear(F.silu(self.condition(sinusoids)))[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, (d,), eps=1e-6) * (1 + m[1]) + m[0]
        q, k, v = (f(h).view(n, tokens, self.heads, -1).transpose(1, 2)
                   for f in (self.attn1.to_q, self.attn1.to_k, self.attn1.to_v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, d)
        x = x + m[2] * self.attn1.to_out[0](h)
        h = F.layer_norm(x, (d,), eps=1e-5) * (1 + m[4]) + m[3]
        return x + m[5] * self.ff.net[2](F.gelu(self.ff.net[0].proj(h), approximate="tanh"))


class Dit(nn.Module):
    """diffusers' DiTTransformer2DModel without classes."""

    def __init__(self, channels=4, size=32, patch=4, heads=6, width=64, layers=12):
        super().__init__()
        d = heads * width
        self.image, self.patch = (channels, size, size), patch
        self.pos_embed = nn.Module()
        self.pos_embed.proj = nn.Conv2d(channels, d, patch, stride=patch)
        self.transformer_blocks = nn.ModuleList(DitBlock(d, heads) for _ in range(layers))
        self.proj_out_1, self.proj_out_2 = nn.Linear(d, 2 * d), nn.Linear(d, patch * patch * channels)
        side = torch.arange(size // patch)
        embed = lambda at: timestep_embedding(at, d // 2, torch.float64, flip=False)
        places = torch.cat([embed(side.repeat(len(side))), embed(side.repeat_interleave(len(side)))], dim=-1)
        self.register_buffer("places", places.float(), persistent=False)

    def forward(self, x, t):
        sinusoids = timestep_embedding(t, 256, x.dtype, shift=1.0)
        h = self.pos_embed.proj(x).flatten(2).transpose(1, 2) + self.places
        for block in self.transformer_blocks:
            h = block(h, sinusoids)
        shift, scale = self.proj_out_1(F.silu(self.transformer_blocks[0].condition(sinusoids)))[:, None].chunk(2, dim=-1)
        h = self.proj_out_2(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        (n, c, height, width), p = x.shape, self.patch
        h = h.view(n, height // p, width // p, p, p, c)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape)


# ---------------------------------------------------------------------------------------------------------- workloads
WORKLOADS = {
    "arena-unet": lambda: ArenaUNet(),
    "mnist-unet": lambda: UNet(1, 28, (32, 64, 64), (False, True, True)),
    "celeba64-unet": lambda: UNet(3, 64, (64, 128, 256, 256), (False, False, True, True)),
    "ldm-unet": lambda: UNet(4, 8, (128, 256), (True, True)),
    "vae64": lambda: ConvVae(),
    "mlp-vae": lambda: MlpVae(),
    # google/ddpm-cifar10-32
    "cifar10-unet": lambda: UNet(3, 32, (128, 256, 256, 256), (False, True, False, False), eps=1e-6, head_width=None,
                                 flip=False, shift=1.0, same=False, dropout=0.1),
    "dit-s4": lambda: Dit(),
}
COUNTS = {"arena-unet": 5_294_080, "mnist-unet": 1_707_009, "celeba64-unet": 26_623_363, "ldm-unet": 16_264_708,
          "vae64": 4_039_115, "mlp-vae": 1_068_820, "cifar10-unet": 35_746_307, "dit-s4": 35_227_840}


def build(name):
    """The model of a workload, with PyTorch's initial weights."""
    model = WORKLOADS[name]()
    count = sum(p.numel() for p in model.parameters())
    assert count == COUNTS[name], f"{name}: {count} parameters instead of {COUNTS[name]}"
    return model


def inputs(model, batch, device="cpu"):
    """Images, and the second argument of the model: timesteps, or noise for the latent of a VAE."""
    x = torch.rand(batch, *model.image, device=device) * 2 - 1
    if isinstance(model, Vae):
        return x, torch.randn(batch, *model.latent, device=device)
    return x, torch.randint(0, 1000, (batch,), device=device)


def loss_of(model, out, target):
    """A VAE's target is its input, a U-Net's the noise."""
    return model.objective(out, target) if isinstance(model, Vae) else F.mse_loss(out, target)


def diffusers_twin(name):
    from diffusers import DiTTransformer2DModel, UNet2DModel
    mine = build(name)
    if isinstance(mine, Dit):
        return DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, in_channels=4, num_layers=12,
                                     sample_size=32, patch_size=4, num_embeds_ada_norm=0).eval()
    widths = [level.resnets[0].conv1.out_channels for level in mine.down_blocks]
    attention = [len(level.attentions) > 0 for level in mine.down_blocks]
    google = dict(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6, attention_head_dim=None, dropout=0.1)
    return UNet2DModel(
        sample_size=mine.image[1], in_channels=mine.image[0], out_channels=mine.image[0], block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        **(google if name == "cifar10-unet" else {}))


def verify():
    for name in WORKLOADS:
        mine = build(name).double().eval()
        if not isinstance(mine, (UNet, Dit)):
            continue
        torch.manual_seed(0)
        theirs = diffusers_twin(name).double().eval()
        mine.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
        x, t = torch.randn(2, *mine.image).double(), torch.tensor([3, 7])
        classes = dict(class_labels=torch.zeros(2, dtype=torch.long)) if isinstance(mine, Dit) else {}
        a, b = mine(x, t), theirs(x, t, **classes).sample
        a.square().mean().backward()
        b.square().mean().backward()
        grads = dict(theirs.named_parameters())
        difference = max((p.grad - grads[n].grad).norm() for n, p in mine.named_parameters())
        largest = max(p.grad.norm() for p in theirs.parameters())
        # diffusers computes the sinusoids in f32, whatever the model is in.
        right = (a - b).norm() < 1e-6 * b.norm() and difference < 1e-6 * largest
        print(f"{name}: output differs by {(a - b).norm() / b.norm():.0e}, gradients by {difference / largest:.0e}")
        assert right, name


if __name__ == "__main__":
    for workload in WORKLOADS:
        print(workload, sum(p.numel() for p in build(workload).parameters()))
    if "--verify" in sys.argv:
        verify()
