"""Tiny runs of every kind, 1 to 2 s each: a checkpoint every few steps, pictures now and then; and the bounds
of what they may take."""

MB = 1 << 20
GB = 1 << 30
# Memory that a command may map: a damaged size must not take the machine down.
MEMORY = 6 * GB
# A user without processes and without rights, where root has to become another.
NOBODY = 54321


CPU = ["--device", "cpu"]


def sets(text):
    return [part for pair in text.split() for part in ("--set", pair)]


OFTEN = sets("checkpoint_every=5 keep_checkpoints=2 sample_every=10 sample_count=4")
SMALL = OFTEN + sets("image_size=16")
DIFFUSION = sets(
    "timesteps=100 sample_steps=5 unet.block_out_channels=[8,16] unet.norm_num_groups=4 "
    "unet.attention_head_dim=8"
)
CONVOLUTIONS = sets("evaluate_every=10 evaluate_count=8 vae.widths=[8,16] vae.norm_num_groups=4 batch_size=4")
# Kind of run: recipe, settings, steps.
KINDS = {
    "ddpm": ("digits", DIFFUSION + sets("batch_size=8"), 80),
    "classes": ("digits", DIFFUSION + sets("batch_size=6 unet.num_class_embeds=3"), 80),
    "mlp-vae": ("mnist-mlp-vae", sets("evaluate_every=10 evaluate_count=8 vae.widths=[64,32]"), 300),
    "conv-vae": ("digits-vae", CONVOLUTIONS, 250),
    # What latent diffusion trains on: the kind that can be exported.
    "kl-vae": ("digits-kl", CONVOLUTIONS + sets("vae.widths=[8,8,16]"), 60),
    "ldm": ("digits-ldm", DIFFUSION + sets("batch_size=16 latent_count=2000 latent_size=4"), 170),
    "autoencoder": ("digits-vae", CONVOLUTIONS + sets("vae.variational=false"), 250),
    # Weights of `ddpm` that went through a folder of the diffusers library.
    "imported": (None, OFTEN + sets("batch_size=8 sample_steps=5"), 60),
}
KILLED = [kind for kind in KINDS if kind != "kl-vae"]
KEPT = 2
