//! The README and the guide: every command in them is run, with smaller numbers, or listed here with the
//! reason why not; every link leads somewhere, and the page of keys is the table of keys.

mod fixtures;
mod smaller;
mod text;

use std::fs;
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use self::text::{Page, names, words};
use crate::command_line::denoir;
use crate::place::root;

/// How commands begin that no test here runs, and why. Those of denoir are parsed nevertheless.
const NOT_RUN: [(&str, &str); 13] = [
    ("mpirun ", "needs an MPI; tests/it/distributed.rs runs ranks where there is one"),
    ("denoir watch ", "serves until it is stopped; tests/it/watch.rs asks it"),
    ("denoir tune ", "needs a GPU; tests/it/tuning.rs tunes where there is one"),
    ("denoir bench roofline", "measures for ten seconds; tests/it/bench.rs runs it"),
    ("cargo install --path .", "installs the program on this machine"),
    ("cargo run --release --example ", "tests/it/examples.rs runs the examples"),
    ("cargo run --example ", "tests/it/examples.rs runs the examples"),
    ("cargo bench", "takes minutes"),
    ("tools/test", "runs this test"),
    ("tools/compare/run ", "needs PyTorch, and minutes"),
    ("python tools/reference/", "needs PyTorch"),
    ("python3 -m http.server ", "serves until it is stopped; tests/it/web.rs serves what denoir web writes"),
    ("DENOIR_GOLDEN=", "needs the file that PyTorch writes in the line before"),
];

fn not_run(command: &str) -> bool {
    NOT_RUN.iter().any(|(begin, _)| command.starts_with(begin))
}

/// Runs a command, or parses what is not run.
///
/// # Errors
/// What is wrong with it.
fn check(at: &Path, command: &str) -> Result<(), String> {
    let mut said = words(command)?;
    for word in said.iter().filter(|word| word.starts_with("tools/")) {
        if !root().join(word).exists() {
            return Err(format!("there is no {word}"));
        }
    }
    if let Some(name) = said.iter().skip_while(|word| *word != "--example").nth(1)
        && !root().join("tools/examples").join(format!("{name}.rs")).exists()
    {
        return Err(format!("there is no example {name}"));
    }
    // What cargo builds and runs is denoir.
    if command.starts_with("cargo run --release -- ") {
        said.splice(..4, ["denoir".to_owned()]);
    }
    let listed = not_run(command);
    let program = said.iter().position(|word| word == "denoir");
    if program != Some(0) && !listed {
        return Err("it is neither run nor listed in tests/it/guide.rs".to_owned());
    }
    // Another program may start it.
    let Some(program) = program else { return Ok(()) };
    let mut arguments = said.split_off(program + 1);
    let mut file = None;
    if let Some(place) = arguments.iter().position(|word| word == ">") {
        file = arguments.split_off(place).into_iter().nth(1);
    }
    let arguments = match listed {
        // Help comes after what stands before it is parsed.
        true => [arguments, vec!["--help".to_owned()]].concat(),
        false => smaller::smaller(at, &arguments),
    };
    let output = denoir(at, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    if let Some(file) = file {
        fs::write(at.join(file), &output.stdout).map_err(|e| e.to_string())?;
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("denoir {arguments:?}:\n{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Runs the commands of a page, one after the other in one folder.
fn run(page: &Page) {
    let folder = TempDir::new().unwrap();
    fixtures::prepare(folder.path());
    for line in page.commands() {
        let before = Instant::now();
        check(folder.path(), &line.command)
            .unwrap_or_else(|error| panic!("{}: {}: {error}", line.place, line.command));
        println!("{:6.2} s  {}: {}", before.elapsed().as_secs_f64(), line.place, line.command);
    }
}

/// Pages with a test of their own, so that they run beside one another; all others share one.
macro_rules! pages {
    ($($test:ident: $name:literal,)*) => {
        const ALONE: &[&str] = &[$($name),*];
        $(#[test]
        fn $test() {
            run(&Page::named($name));
        })*
    };
}

pages! {
    first_training: "first-training",
    your_own_data: "your-own-data",
    evaluation: "evaluation",
    latent_diffusion: "latent-diffusion",
    text_to_image: "text-to-image",
    diffusers: "diffusers",
    kernels_and_speed: "kernels-and-speed",
}

#[test]
fn readme() {
    run(&Page::readme());
}

#[test]
fn the_other_pages() {
    names().iter().filter(|name| !ALONE.contains(&name.as_str())).for_each(|name| run(&Page::named(name)));
}

#[test]
fn mistakes_in_a_command_are_found() {
    let folder = TempDir::new().unwrap();
    for (command, wanted) in [
        ("denoir fly", "unrecognized subcommand"),
        ("denoir train digits --stepps 3", "--stepps"),
        ("denoir train digits --set stepps=3", "no key called"),
        ("denoir help keys lrr", "did you mean lr?"),
        ("denoir sample runs/nothing", "runs/nothing does not exist"),
        ("denoir train nothing", "no recipe called"),
        ("denoir watch runs --no-such-flag", "--no-such-flag"),
        ("denoir tune mnist --steps 3", "--steps"),
        ("srun -n 2 denoir train", "neither run nor listed"),
        ("tools/nothing", "there is no tools/nothing"),
        ("cargo run --example nothing", "there is no example nothing"),
        ("denoir runs | head", "not understood"),
    ] {
        let error = check(folder.path(), command).expect_err(command);
        assert!(error.contains(wanted), "{command}: {error}");
    }
}

#[test]
fn what_is_listed_as_not_run_is_there() {
    let all: Vec<_> = Page::all().iter().flat_map(Page::commands).collect();
    for (begin, why) in NOT_RUN {
        let found = all.iter().any(|line| line.command.starts_with(begin));
        assert!(found && !why.is_empty(), "no page says {begin:?}: take it out of NOT_RUN");
    }
}

#[test]
fn links_lead_somewhere() {
    for page in Page::all() {
        let folder = root().join(&page.path).parent().unwrap().to_owned();
        for (name, target) in page.links() {
            let web = target.starts_with("https://");
            assert!(web || folder.join(&target).exists(), "{}: there is no {target}", page.path);
            // In the documentation the name is a module.
            let module = page.path == "README.md" || format!("{name}.md") == target;
            assert!(module, "{}: write [text][{name}], and [{name}]: {name}.md", page.path);
        }
    }
}

#[test]
fn every_page_is_in_the_documentation_and_in_the_readme() {
    let (readme, modules) = (Page::readme().text, fs::read_to_string(root().join("src/guide.rs")).unwrap());
    for name in names() {
        let [row, line] =
            [format!("](src/guide/{name}.md)"), format!("    {} \"{name}\",", name.replace('-', "_"))];
        assert!(readme.contains(&row), "README.md has no row of {name}");
        assert!(modules.contains(&line), "src/guide.rs has no line{line}");
    }
}

#[test]
fn the_page_of_keys_is_the_table() {
    let folder = TempDir::new().unwrap();
    let output = denoir(folder.path(), &["help", "keys", "--markdown"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = Page::named("keys").text;
    assert!(
        page == String::from_utf8(output.stdout).unwrap(),
        "src/guide/keys.md differs from the table; write it again: \
         cargo run -- help keys --markdown > src/guide/keys.md"
    );
}
