"""One VAE golden: a variational autoencoder (or a plain one) with seeded weights, its loss and every gradient, in f64.

The f64 run takes the f32 values of the parameters and inputs, so it is the exact answer (to 1e-15) to the very
question that an f32 engine is asked.  The f32 run of the same model is PyTorch's own rounding error: the yardstick.

    z = mean + exp(log_var / 2) * eps         raw = decoder(z)              a plain autoencoder: z = mean, no kl
    out = tanh(raw), or tanh(raw / 2) where the loss is bce: the image, in [-1, 1]
    reconstruction = 1/N sum (out - x)^2  |  1/N sum |out - x|  |  1/N sum BCE(sigmoid(raw), (x + 1) / 2)
    kl = -1/2N sum (1 + log_var - mean^2 - exp(log_var))
    loss = reconstruction + kl_weight * kl    grad = d loss / d parameter

Sums run over all elements of the batch of N.

Tensors (PyTorch layouts: images NCHW, conv OIHW, transposed conv [in, out, 4, 4], linear [out, in]):
    param/<name>  f32      in/x [N, C, H, W] in [-1, 1]  f32      in/eps, of the latent's shape, where there is a kl  f32
    f64/mean  f64/z, and f64/log_var where there is a kl: [N, latent, h, w], mlp: [N, latent]
    f64/out [N, C, H, W]  f64/loss  f64/reconstruction  f64/kl (where there is one), each [1]
    f64/grad/<name>, for every parameter                                                                   all f64
Metadata, each a JSON text:
    config            kind ("conv" or "mlp"), in_channels, widths, latent, norm_num_groups, norm_eps, variational
    loss              reconstruction ("mse", "l1" or "bce"), kl_weight
    image_size        the side
    zero_grad         [names] whose exact gradient is zero; f64/grad holds rounding noise there
    f32_error         {"out", "mean", "z", "log_var", "loss", "reconstruction", "kl", <name>...}: norm(f32 - f64) / norm(f64),
                      the worst of PyTorch's CPU paths; no entry for the zero_grad names
    f32_error_layer   {<name less .weight or .bias>}: the same over weight and bias as one vector
    margin            the smallest distance of any value from the kink of its ReLU, and in l1 from its pixel
    seed              for the record

Kinks: where a value lies within rounding of a kink, an engine may take the other side, and a gradient is off by far more
than rounding.  In millions of values there always is one, so biases are moved a little until none is near (keep_off).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import AutoencoderKL

from unet_golden import MATTERS, errors, save, weigh

REACH = 0.05  # how far a bias may be moved to keep a layer's values away from a kink


class Linear(nn.Linear):
    """PyTorch computes this in one way only, whatever is switched on; as a convolution of one pixel it has others."""
    as_convolution = False

    def forward(self, x):
        if not self.as_convolution:
            return super().forward(x)
        return F.conv2d(x[:, :, None, None], self.weight[:, :, None, None], self.bias).flatten(1)


class Relu(nn.Module):
    """ReLU, and the layer whose bias moves its input."""

    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]  # in a list, so that it is no part of this module

    def forward(self, x):
        return F.relu(x)


class ResBlock(nn.Module):
    """relu(gn(conv(relu(gn(conv(x))))) + x), x through a 1x1 convolution where the widths differ."""

    def __init__(self, cin, cout, groups, eps):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.gn1 = nn.GroupNorm(groups, cout, eps=eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.gn2 = nn.GroupNorm(groups, cout, eps=eps)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.relu1, self.relu2 = Relu(self.gn1), Relu(self.gn2)

    def forward(self, x):
        h = self.gn2(self.conv2(self.relu1(self.gn1(self.conv1(x)))))
        return self.relu2(h + self.skip(x))


class ConvVae(nn.Module):
    """A level of the encoder is a ResBlock and a convolution of stride 2; the decoder mirrors it with transposed
    convolutions (kernel 4, stride 2, padding 1) of unchanged width."""

    def __init__(self, c, size):
        super().__init__()
        block = lambda cin, cout: ResBlock(cin, cout, c["norm_num_groups"], c["norm_eps"])
        widths, w = c["widths"], c["in_channels"]
        encoder = []
        for width in widths:
            encoder += [block(w, width), nn.Conv2d(width, width, 3, stride=2, padding=1)]
            w = width
        encoder.append(nn.Conv2d(w, c["latent"] * (2 if c["variational"] else 1), 3, padding=1))
        decoder = [nn.Conv2d(c["latent"], w, 3, padding=1)]
        for width in [*reversed(widths[:-1]), widths[0]]:
            decoder += [nn.ConvTranspose2d(w, w, 4, stride=2, padding=1), block(w, width)]
            w = width
        decoder.append(nn.Conv2d(w, c["in_channels"], 3, padding=1))
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.latent_shape = [c["latent"], *[size >> len(widths)] * 2]

    def rows(self, x):
        """An image as the encoder takes it and the decoder's last layer gives it."""
        return x

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


class MlpVae(nn.Module):
    """Linear layers with ReLU between them, in to `widths` to the latent and back.  An image is a vector in the order
    [H, W, C], both ways."""

    def __init__(self, c, size):
        super().__init__()
        self.image = [size, size, c["in_channels"]]

        def layers(widths):
            made = []
            for cin, cout in zip(widths, widths[1:]):
                layer = Linear(cin, cout)
                made += [layer, Relu(layer)]
            return nn.Sequential(*made[:-1])

        pixels, latent = math.prod(self.image), c["latent"]
        self.encoder = layers([pixels, *c["widths"], latent * (2 if c["variational"] else 1)])
        self.decoder = layers([latent, *reversed(c["widths"]), pixels])
        self.latent_shape = [latent]

    def rows(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)

    def encode(self, x):
        return self.encoder(self.rows(x))

    def decode(self, z):
        return self.decoder(z).unflatten(1, self.image).permute(0, 3, 1, 2)


class Reference(nn.Module):
    """diffusers' AutoencoderKL or VQModel, by halves; the parameters keep their names."""

    def __init__(self, c, size):
        super().__init__()
        model = theirs(c, size)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.quant_conv = model.quant_conv or nn.Identity()
        self.post_quant_conv = model.post_quant_conv or nn.Identity()
        side = size >> (len(c["widths"]) - 1)
        self.latent_shape = [c["latent"], side, side]

    def rows(self, x):
        return x

    def encode(self, x):
        return self.quant_conv(self.encoder(x))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


def theirs(c, size):
    """The library's model for our configuration."""
    levels = len(c["widths"])
    both = dict(in_channels=c["in_channels"], out_channels=c["in_channels"], block_out_channels=c["widths"],
                down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
                layers_per_block=c["layers_per_block"], act_fn=c["act_fn"], norm_num_groups=c["norm_num_groups"],
                sample_size=size, mid_block_add_attention=c["mid_block_add_attention"])
    return AutoencoderKL(latent_channels=c["latent"], use_quant_conv=c["use_quant_conv"],
                         use_post_quant_conv=c["use_post_quant_conv"], **both)


def model_of(config, size):
    return {"conv": ConvVae, "mlp": MlpVae, "kl": Reference}[config["kind"]](config, size)


def forward(model, config, loss, x, eps):
    """Every tensor of the forward pass by name."""
    t = {}
    if config["variational"]:
        t["mean"], t["log_var"] = model.encode(x).chunk(2, dim=1)
        if config["kind"] == "kl":
            t["log_var"] = t["log_var"].clamp(-30, 20)
        t["z"] = t["mean"] + torch.exp(0.5 * t["log_var"]) * eps
    else:
        t["z"] = t["mean"] = model.encode(x)
    raw = model.decode(t["z"])
    kind, n = loss["reconstruction"], x.shape[0]
    t["out"] = raw if config["kind"] == "kl" else torch.tanh(raw / 2 if kind == "bce" else raw)
    if kind == "bce":
        total = F.binary_cross_entropy_with_logits(raw, (x + 1) / 2, reduction="sum")
    else:
        total = {"mse": F.mse_loss, "l1": F.l1_loss}[kind](t["out"], x, reduction="sum")
    t["loss"] = t["reconstruction"] = (total / n).reshape(1)
    if config["variational"]:
        mean, log_var = t["mean"], t["log_var"]
        t["kl"] = (-0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp()) / n).reshape(1)
        t["loss"] = t["reconstruction"] + loss["kl_weight"] * t["kl"]
    return t


def build(config, loss, size, batch, seed):
    """A model whose every part matters, and its inputs x and eps.

    Norms are moved away from (1, 0), weights have variance 1/fan_in (twice that where nothing but ReLU follows) and biases
    are a third of their outputs; the layer before the latent is smaller, so that variances are not far from 1.  A third
    of the pixels are black or white.
    """
    torch.manual_seed(seed)
    model = model_of(config, size)
    modules = dict(model.named_modules())
    # Fewer than ten layers: the order is that of names.
    last = "encoder.conv_out" if config["kind"] == "kl" else max(n for n in modules if n.startswith("encoder."))
    with torch.no_grad():
        for name, p in model.named_parameters():
            layer = modules[name.rsplit(".", 1)[0]]
            if isinstance(layer, nn.GroupNorm):
                p.copy_(torch.randn(p.shape) * 0.4 + 1.0 if name.endswith("weight") else torch.randn(p.shape) * 0.3)
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape) * 0.3)
            else:
                # Two of four taps along each axis of a transposed convolution of stride 2 meet an output.
                fan_in = p.shape[0] * 4 if isinstance(layer, nn.ConvTranspose2d) else p[0].numel()
                gain = (0.7 if layer is modules[last] else 1.0) * (math.sqrt(2) if isinstance(layer, nn.Linear) else 1.0)
                p.copy_(torch.randn(p.shape) * gain / math.sqrt(fan_in))
    x = torch.randn(batch, config["in_channels"], size, size).clamp(-1, 1)
    eps = torch.randn(batch, *model.latent_shape) if config["variational"] else None
    keep_off(model, config, loss, x, eps)
    return model, x, eps


def at_kinks(model, loss, x, see):
    """Lets `see(layer, v)` look at each v whose zeros are kinks, [N, channels, ...]; what it returns is added to the output
    of the layer.  Returns hooks to be removed."""
    hooks = [m.register_forward_pre_hook(lambda m, args: (args[0] + see(m.layer[0], args[0]),))
             for m in model.modules() if isinstance(m, Relu)]
    if loss["reconstruction"] == "l1":
        # |tanh(raw) - x| bends where raw = atanh(x): nowhere if x is 1 or -1.
        where = model.rows(x.double()).atanh()
        hooks.append(model.decoder[-1].register_forward_hook(lambda m, _, raw: raw + see(m, raw - where)))
    return hooks


def keep_off(model, config, loss, x, eps):
    """Moves the biases, channel by channel, to where the values stay farthest away from their kinks."""
    def away(v):  # [values of a channel] to the best shift within REACH
        kinks = -v[v.abs() <= 2 * REACH].sort().values
        inside = (kinks[1:] + kinks[:-1]) / 2
        shifts = torch.cat([inside[inside.abs() <= REACH], v.new_tensor([0.0, -REACH, REACH])])
        if len(kinks) == 0:
            return v.new_tensor(0.0)
        return shifts[(shifts[:, None] - kinks).abs().min(1).values.argmax()]

    def see(layer, v):
        shift = torch.stack([away(channel) for channel in v.movedim(1, 0).flatten(1)])
        layer.bias += shift
        return shift.reshape(-1, *[1] * (v.ndim - 2))

    model.double()
    hooks = at_kinks(model, loss, x, see)
    with torch.no_grad():
        forward(model, config, loss, x.double(), convert(eps, torch.float64))
    for hook in hooks:
        hook.remove()
    model.float()


def convert(v, dtype):
    return None if v is None else v.to(dtype)


def margin(model, config, loss, x, eps):
    """The smallest distance from a kink in the forward pass of an f64 model."""
    least = []

    def see(_, v):
        least.append(v.abs().min().item())
        return 0.0

    hooks = at_kinks(model, loss, x, see)
    with torch.no_grad():
        forward(model, config, loss, x.double(), convert(eps, torch.float64))
    for hook in hooks:
        hook.remove()
    return min(least, default=1.0)  # 1: there is no kink


def run(model, dtype, config, loss, x, eps):
    """The forward tensors and the gradients by name, all as f64."""
    model = model.to(dtype)
    model.zero_grad()
    t = forward(model, config, loss, x.to(dtype), convert(eps, dtype))
    t["loss"].backward()
    grads = {n: p.grad.double().clone() for n, p in model.named_parameters()}
    return {n: v.detach().double() for n, v in t.items()}, grads


def f32_runs(model, config, loss, x, eps):
    """PyTorch's f32 answers by every path that it has on a CPU: its own convolutions and oneDNN's, both memory layouts,
    linear layers as such and as convolutions.  One run alone is right by luck in some tensor of a tiny model; the worst
    of all is its error."""
    for onednn in (True, False):
        for layout in (torch.contiguous_format, torch.channels_last):
            for as_convolution in (False, True) if config["kind"] == "mlp" else (False,):
                for module in model.modules():
                    if isinstance(module, Linear):
                        module.as_convolution = as_convolution
                with torch.backends.mkldnn.flags(enabled=onednn):
                    model = model.to(memory_format=layout)
                    yield run(model, torch.float32, config, loss, x.to(memory_format=layout), eps)
    model.to(memory_format=torch.contiguous_format)


def write(path, config, loss, seed, batch, size):
    """Build, run in f32 and in f64, write `path`; returns a line about it."""
    model, x, eps = build(config, loss, size, batch, seed)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}

    runs = list(f32_runs(model, config, loss, x, eps))
    t, g = run(model, torch.float64, config, loss, x, eps)
    distance = margin(model, config, loss, x, eps)
    assert distance > 1e-5, f"{path}: {distance:.1e} from a kink"

    zero, weakest = weigh(path, params, g, t["loss"].item())
    if "kl" in t:  # both terms and both halves of the encoder's output must be seen
        share = loss["kl_weight"] * t["kl"].item() / t["loss"].item()
        assert share > MATTERS and t["log_var"].std().item() > 0.1, f"{path}: the KL is {share:.1e} of the loss"

    about = errors(t, g, runs, zero)
    error = about["f32_error"]

    tensors = {f"param/{n}": p for n, p in params.items()} | {"in/x": x}
    if eps is not None:
        tensors["in/eps"] = eps
    tensors |= {f"f64/{n}": v for n, v in t.items()} | {f"f64/grad/{n}": v for n, v in g.items()}
    save(path, tensors, config=config, loss=loss, image_size=size, **about,
         margin=float(f"{distance:.4g}"), seed=seed)
    count = sum(p.numel() for p in params.values())
    worst = max(error, key=error.get)
    shown = ", ".join(f"{n} {v.item():.3f} (f32 off by {error[n]:.0e})" for n, v in t.items() if v.numel() == 1)
    return (f"{count} parameters, {len(g)} tensors ({len(zero)} of zero gradient); {distance:.0e} from a kink; "
            f"{shown}; f32 error: out {error['out']:.1e}, mean {error['mean']:.1e}, worst {error[worst]:.1e} "
            f"({worst}); {weakest}")
