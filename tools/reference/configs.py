"""The configurations: full-size ones whose names and counts are recorded, tiny ones that become goldens.  U-Nets first,
then VAEs.

Of a UNet2DModel, only keys that differ from diffusers' defaults are given, save where the default is the point of the case.
"""
D, A, U, AU = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"


def levels(widths, attention, layers=2, **rest):
    """`attention` names one letter a level, shallow to deep, "A" or "-"; the up path mirrors the down path."""
    return dict(block_out_channels=widths, layers_per_block=layers,
                down_block_types=tuple(A if a == "A" else D for a in attention),
                up_block_types=tuple(AU if a == "A" else U for a in reversed(attention)), **rest)


# What google/ddpm-* checkpoints set besides their widths.
GOOGLE = dict(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6, attention_head_dim=None)
ONE = dict(in_channels=1, out_channels=1)
MNIST = levels((32, 64, 64), "-AA", sample_size=28, **ONE)
TINY = levels((4, 8), "-A", layers=1, sample_size=8, norm_num_groups=4)

KNOWN = {
    "cifar10": levels((128, 256, 256, 256), "-A--", sample_size=32, **GOOGLE),  # google/ddpm-cifar10-32
    "ddpm256": levels((128, 128, 256, 256, 512, 512), "----A-", sample_size=256, **GOOGLE),  # google/ddpm-*-256
    "train_unconditional": levels((128, 128, 256, 256, 512, 512), "----A-", sample_size=64),  # diffusers' example
    "mnist": MNIST,
    "mnist_wide": levels((64, 128, 128), "-AA", sample_size=28, **ONE),
    "mnist_scale_shift": MNIST | dict(resnet_time_scale_shift="scale_shift"),
    "mnist_class": MNIST | dict(num_class_embeds=10),
    "celeba64": levels((64, 128, 256, 256), "--AA", sample_size=64),
    "ldm": levels((128, 256), "AA", sample_size=8, in_channels=4, out_channels=4),
    "default": levels((224, 448, 672, 896), "-AAA", sample_size=64),  # UNet2DModel()
    "tiny": TINY,  # the model of diffusers' own pipeline tests
}

# Parameter counts published or counted elsewhere (None: not), of the models whose names are recorded; make_goldens.py
# refuses to differ.
COUNTS = {"cifar10": 35_746_307, "ddpm256": 113_673_219, "train_unconditional": 113_673_219, "mnist": 1_707_009,
          "mnist_wide": 6_801_409, "mnist_scale_shift": None, "mnist_class": None, "default": 274_056_163,
          "tiny": 11_767}


def case(widths, attention, hw, t, **rest):
    return dict(config=levels(widths, attention, sample_size=list(hw), **({"layers": 1} | rest)), hw=hw, t=t)


# Each comment says what the case is there to catch.  One time per image, so len(t) is the batch; where t is large
# PyTorch's f32 sinusoids are off by 1e-5, so most cases keep it small and two go to 999.
CASES = {
    # Class defaults, as far as a model this small can have them.
    "basic": case((4, 8), "-A", (8, 8), [3.0, 42.5], attention_head_dim=8, norm_num_groups=2),
    # All that google/ddpm-* set; two layers a level; a wide image; one head of width C.
    "google": case((4, 8), "-A", (8, 12), [0.0, 999.0], layers=2, norm_num_groups=2, time_embedding_dim=8,
                   **ONE, **GOOGLE),
    # A middle level, attention there only, two heads; batch 3.
    "three_levels": case((4, 8, 8), "-A-", (8, 12), [0.0, 10.0, 77.0], attention_head_dim=4, norm_num_groups=2,
                         time_embedding_dim=8, **ONE),
    # The first level has one channel a group: norm2 cancels conv1.bias and time_emb_proj there.
    "one_channel_per_group": case((4, 8), "-A", (8, 8), [1.0, 250.0], attention_head_dim=4, norm_num_groups=4, **ONE),
    # FiLM; the middle attention then has no group norm of its own.
    "scale_shift": case((4, 8), "-A", (8, 8), [5.0, 60.0], attention_head_dim=4, norm_num_groups=2,
                        resnet_time_scale_shift="scale_shift"),
    # FiLM with a middle norm; asymmetric padding; taller than wide; [sin, cos] with shift 0.
    "scale_shift_attn_norm": case((4, 4), "-A", (12, 8), [9.0, 33.0], attention_head_dim=4, norm_num_groups=2,
                                  attn_norm_num_groups=4, resnet_time_scale_shift="scale_shift", downsample_padding=0,
                                  flip_sin_to_cos=False, **ONE),
    # No attention anywhere; 2 channels in, 5 out; input moved from [0, 1] to [-1, 1]; two layers; odd batch.
    "no_attention": case((4, 8), "--", (12, 8), [2.0, 30.0, 100.0], layers=2, norm_num_groups=2, add_attention=False,
                         center_input_sample=True, in_channels=2, out_channels=5, time_embedding_dim=8),
    # A class table with a class that two images share; the middle attention has groups of its own.
    "class_embed": case((4, 8), "-A", (8, 8), [4.0, 50.0, 999.0], attention_head_dim=4, norm_num_groups=2,
                        attn_norm_num_groups=8, num_class_embeds=5, **ONE),
    # The middle divided by 1.5; time_embedding_dim not 4 * C0; [cos, sin] with shift 1; eps 1e-6 with padding 1;
    # attention at every level; 1 channel in, 2 out.
    "mid_scale": case((4, 4), "AA", (8, 12), [7.0, 21.0], attention_head_dim=2, norm_num_groups=2,
                      mid_block_scale_factor=1.5, time_embedding_dim=10, freq_shift=1, norm_eps=1e-6,
                      in_channels=1, out_channels=2),
    # Widths that fall; two heads of width 8; 96 tokens; no attention in the middle.
    "wide_heads": case((16, 4), "A-", (8, 12), [6.0, 90.0], attention_head_dim=8, norm_num_groups=2,
                       add_attention=False, time_embedding_dim=12, **ONE),
    # act_fn reaches the residual blocks only: the time embedding's and the last activation stay SiLU.
    "relu": case((4, 4), "A-", (8, 8), [8.0, 19.0], attention_head_dim=2, norm_num_groups=2, act_fn="relu", **ONE),
    "gelu": case((4, 4), "-A", (8, 8), [8.0, 19.0], attention_head_dim=2, norm_num_groups=2, act_fn="gelu", **ONE),
    # One level (no samplers), a prime-sized image, groups of 2 of 6 channels; head_dim 4 does not divide 6, so there
    # is one head and to_q, to_k, to_v are [4, 6], to_out.0 is [6, 4].
    "inner_width": case((6,), "A", (5, 7), [11.0, 64.0], attention_head_dim=4, norm_num_groups=3, **ONE),
    # As ADM has it: residual blocks that halve and double, in levels with attention and without; FiLM.
    "resnet_samplers": case((4, 8, 4), "A--", (8, 12), [3.0, 71.0], attention_head_dim=4, norm_num_groups=2,
                            resnet_time_scale_shift="scale_shift", attn_norm_num_groups=2, downsample_type="resnet",
                            upsample_type="resnet", time_embedding_dim=8, **ONE),
    # Nothing between the way down and the way up; residual samplers that plain levels do not heed.
    "no_middle": case((4, 8), "-A", (8, 8), [12.0, 40.0], attention_head_dim=4, norm_num_groups=2, mid_block_type=None,
                      downsample_type="resnet", upsample_type="resnet", time_embedding_dim=8, **ONE),
    # Frequencies of the logarithm of a level that need not be whole; the output divided by it.
    "fourier": case((4, 8), "-A", (8, 8), [0.7, 42.5, 999.0], attention_head_dim=4, norm_num_groups=2,
                    time_embedding_type="fourier", time_embedding_dim=8),
    # A table of timesteps, of which two images share a row.
    "learned": case((4, 8), "-A", (8, 8), [3, 19, 3], attention_head_dim=4, norm_num_groups=2, time_embedding_type="learned",
                    num_train_timesteps=20, **ONE),
    # A class that is a number, embedded as a timestep is; odd widths, so the sinusoids end with a zero.
    "class_timestep": case((9, 6), "-A", (8, 8), [12.0, 77.0], attention_head_dim=3, norm_num_groups=3,
                           class_embed_type="timestep", time_embedding_dim=8, **ONE),
    # A class that is its embedding; the number of classes means nothing then.
    "class_identity": case((4, 8), "-A", (8, 8), [5.0, 120.0], attention_head_dim=4, norm_num_groups=2,
                           class_embed_type="identity", num_class_embeds=3, time_embedding_dim=6, **ONE),
}
CASES["resnet_samplers"]["config"] |= dict(down_block_types=(A, "ResnetDownsampleBlock2D", D),
                                           up_block_types=("ResnetUpsampleBlock2D", AU, U))


# -------------------------------------------------------------------------------------------------------------- VAEs
def vae(kind, in_channels, widths, latent, groups=32, eps=1e-5, variational=True):
    return dict(kind=kind, in_channels=in_channels, widths=list(widths), latent=latent, norm_num_groups=groups,
                norm_eps=eps, variational=variational)


def kl(in_channels, widths, latent, groups=32, **rest):
    """AutoencoderKL, under our names."""
    defaults = dict(layers_per_block=1, act_fn="silu", mid_block_add_attention=True, use_quant_conv=True,
                    use_post_quant_conv=True)
    return dict(kind="kl", in_channels=in_channels, widths=list(widths), latent=latent, norm_num_groups=groups,
                variational=True) | defaults | rest


def vae_case(config, size, batch, reconstruction, kl_weight=1.0):
    return dict(config=config, size=size, batch=batch, loss=dict(reconstruction=reconstruction, kl_weight=kl_weight))


# Full sizes, whose names are recorded too.
KNOWN_VAES = {
    "conv64": vae_case(vae("conv", 3, (64, 128, 256), 4), 64, 2, "mse"),
    "mlp": vae_case(vae("mlp", 1, (512, 256), 2), 28, 16, "bce"),
}

# Counted elsewhere.
VAE_COUNTS = {"conv64": 4_039_115, "mlp": 1_068_820}

# Each comment says what the case is there to catch.
VAE_CASES = {
    # What everyone trains, small; the latent is 3 x 3.
    "conv_mse": vae_case(vae("conv", 3, (8, 16), 4, groups=4), 12, 3, "mse"),
    # Odd batch, grey, an eps that shows, a weight of the KL; three channels of 5 x 5 are a multiple of nothing.
    "conv_l1": vae_case(vae("conv", 1, (4, 8), 3, groups=2, eps=1e-3), 20, 5, "l1", 0.1),
    # One level, wider than the others; logits instead of tanh.
    "conv_bce": vae_case(vae("conv", 3, (16,), 4, groups=8), 8, 2, "bce", 0.5),
    # No posterior: the encoder's last layer is half as wide.  The first level has one channel a group: the norms cancel
    # the biases of its convolutions.
    "conv_autoencoder": vae_case(vae("conv", 3, (4, 8), 4, groups=4, variational=False), 16, 2, "mse"),
    # Equal neighbours, so blocks without a 1x1 convolution; an image that three halvings make odd.
    "conv_three_levels": vae_case(vae("conv", 3, (4, 8, 8), 4, groups=2), 24, 2, "mse", 2.0),
    # MNIST's size and the latent plane that is drawn.
    "mlp_bce": vae_case(vae("mlp", 1, (10, 7), 2), 28, 3, "bce"),
    # Three hidden layers; the channels lie innermost in the vector.
    "mlp_mse": vae_case(vae("mlp", 3, (20, 12, 9), 5), 8, 4, "mse", 0.3),
    # One hidden layer, no posterior; a vector of odd length.
    "mlp_autoencoder": vae_case(vae("mlp", 3, (16,), 3, variational=False), 7, 3, "l1"),
    # AutoencoderKL as it comes: a norm's eps of 1e-6, asymmetric padding, attention of one head, both 1x1 convolutions.
    "kl_mse": vae_case(kl(3, (4, 8), 4, groups=2), 12, 2, "mse"),
    # Three levels of two blocks, two of them equal; nothing that can be left out.
    "kl_bare": vae_case(kl(1, (4, 4, 6), 2, groups=2, layers_per_block=2, mid_block_add_attention=False,
                           use_quant_conv=False, use_post_quant_conv=False, act_fn="gelu"), 8, 3, "mse", 0.2),
}
