//! The guide: how to train, draw, measure and build with denoir, page by page.
//!
//! The pages are the Markdown files of `src/guide`, so that the repository and this documentation show one
//! text. Begin with [`first_training`], or with [`reading_path`] to read the code. `tests/it/guide.rs` runs
//! their commands.

/// A module for each page. A link `[text][latent-diffusion]` goes to the file that the page's own last lines
/// name; here definitions of these names stand above the text, and the first of two is the one that counts.
macro_rules! pages {
    ($($page:ident $file:literal,)*) => {
        macro_rules! links {
            () => {
                concat!($("[", $file, "]: ", stringify!($page), "\n",)*)
            };
        }
        $(
            #[doc = links!()]
            #[doc = include_str!(concat!("guide/", $file, ".md"))]
            pub mod $page {}
        )*
    };
}

// A new page has a line here, and a row in the README.
pages! {
    first_training "first-training",
    your_own_data "your-own-data",
    evaluation "evaluation",
    latent_diffusion "latent-diffusion",
    text_to_image "text-to-image",
    diffusers "diffusers",
    browser "browser",
    several_processes "several-processes",
    kernels_and_speed "kernels-and-speed",
    as_a_library "as-a-library",
    reading_path "reading-path",
    keys "keys",
}
