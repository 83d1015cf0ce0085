//! The keys of a recipe on the command line: frequent ones as flags, all of them with `--set`.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// Each flag, the key of the recipe that it sets, and what `--help` says of its value.
const FLAGS: [(&str, &str, &str, &str); 9] = [
    (
        "data",
        "data",
        "SPEC",
        "digits, faces, shapes, mnist:DIR, cifar10:DIR, images:DIR, parquet:DIR, pairs:A,B or maps:A,B",
    ),
    ("image-size", "image_size", "PIXELS", "Side of the images"),
    ("steps", "steps", "N", "Steps of the optimiser in all"),
    ("epochs", "epochs", "N", "Passes through the data, where it ends, instead of steps"),
    ("batch-size", "batch_size", "N", "Images of a step"),
    ("lr", "lr", "RATE", "Peak learning rate"),
    ("sample-every", "sample_every", "STEPS", "Steps between pictures; 0: at the end only; never: none"),
    ("seed", "seed", "N", "The same seed gives the same run"),
    (
        "rng",
        "rng",
        "NAME",
        "Of the initial weights: denoir or torch, whose seeds give the weights of a UNet2DModel of the \
         diffusers library",
    ),
];

/// What the command line says of a recipe's keys.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flag, key and value.
    flags: Vec<(&'static str, &'static str, String)>,
    /// `key=value`.
    set: Vec<String>,
}

impl Settings {
    /// Changes a recipe, and checks it.
    ///
    /// # Errors
    /// When a value does not fit, or a key is given twice in different ways.
    pub fn change(&self, recipe: &mut Recipe) -> Result<()> {
        for (i, (flag, key, value)) in self.flags.iter().enumerate() {
            let others = self.flags[..i].iter().map(|(flag, key, value)| (*key, format!("--{flag} {value}")));
            let set = self.set.iter().map(|set| (key_of(set), format!("--set {set}")));
            if let Some((other, said)) = others.chain(set).find(|(other, _)| same(key, other)) {
                let both =
                    if other == *key { format!("both set {key}") } else { "both say how long".to_owned() };
                return Err(
                    Error::usage(format!("{said} and --{flag} {value} {both}")).hint("give one of them")
                );
            }
        }
        for (i, assignment) in self.set.iter().enumerate() {
            let before = self.set[..i].iter().rfind(|other| key_of(other) == key_of(assignment));
            if let Some(before) = before.filter(|before| *before != assignment) {
                super::note(&format!("note: --set {assignment} takes the place of --set {before}"));
            }
            recipe.set(assignment)?;
        }
        for (flag, key, value) in &self.flags {
            recipe.assign(key, value, &format!("--{flag} {value}"))?;
        }
        recipe.validate()
    }
}

fn key_of(assignment: &str) -> &str {
    assignment.split_once('=').map_or(assignment, |(key, _)| key).trim()
}

/// Whether two keys decide the same.
fn same(key: &str, other: &str) -> bool {
    let is_length = |key| key == "steps" || key == "epochs";
    key == other || is_length(key) && is_length(other)
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let given = |name: &str| matches.get_one::<String>(name).cloned();
        let flags = FLAGS.iter().filter_map(|(flag, key, ..)| Some((*flag, *key, given(flag)?)));
        let set = matches.get_many::<String>("set").into_iter().flatten().cloned();
        Ok(Settings { flags: flags.collect(), set: set.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Settings::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let flag = |(flag, key, value, help): (&'static str, &str, &'static str, &str)| {
            let help =
                if key == "data" { help.to_owned() } else { format!("{help} [default: the recipe's]") };
            let arg = Arg::new(flag).long(flag).value_name(value).help(help);
            // A path may be no UTF-8.
            if key == "data" { arg.value_parser(super::any_text()) } else { arg }
        };
        let set = Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append);
        let set = set.help("Override any key of the recipe; may be given several times");
        command.args(FLAGS.map(flag)).arg(set)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{SampleEvery, find};

    fn changed(arguments: &[&str]) -> Result<Recipe> {
        let command = Settings::augment_args(Command::new("train").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).unwrap();
        let mut recipe = find("digits").unwrap();
        Settings::from_arg_matches(&matches).unwrap().change(&mut recipe)?;
        Ok(recipe)
    }

    #[test]
    fn every_flag_sets_its_key_as_set_does() {
        for (flag, key, value) in [
            ("--data", "data", "faces"),
            ("--image-size", "image_size", "24"),
            ("--steps", "steps", "1e3"),
            ("--epochs", "epochs", "3"),
            ("--batch-size", "batch_size", "8"),
            ("--lr", "lr", "2e-4"),
            ("--sample-every", "sample_every", "never"),
            ("--seed", "seed", "12"),
            ("--rng", "rng", "torch"),
        ] {
            let by_flag = changed(&[flag, value]).unwrap();
            assert_eq!(by_flag, changed(&["--set", &format!("{key}={value}")]).unwrap(), "{flag}");
            assert_ne!(by_flag, find("digits").unwrap(), "{flag} {value} changes nothing");
            let twice = changed(&["--set", &format!("{key} = {value}"), flag, value]).unwrap_err();
            assert!(twice.to_string().contains(&format!("{flag} {value} both set {key}")), "{twice}");
            assert_eq!(twice.exit_code(), 2);
        }
        assert_eq!(FLAGS.len(), 9, "a new flag needs its line in this test");
        let many = changed(&["--set", "lr=1", "--set", "steps=5", "--batch-size", "2"]).unwrap();
        assert_eq!((many.lr, many.steps, many.batch_size), (1.0, 5, 2));
        assert_eq!(changed(&["--sample-every", "0"]).unwrap().sample_every, SampleEvery::Steps(0));
    }

    #[test]
    fn errors_speak_of_what_was_written() {
        for (arguments, wanted) in [
            (&["--lr", "fast"][..], "--lr fast: the value does not fit"),
            (&["--steps", "1.5"], "--steps 1.5: the value does not fit"),
            (&["--set", "steps=1.5"], "--set steps=1.5: the value does not fit"),
            (&["--rng", "cuda"], "--rng cuda: the value does not fit"),
            (&["--steps", "5", "--epochs", "2"], "--steps 5 and --epochs 2 both say how long"),
            (&["--steps", "5", "--set", "epochs=2"], "--set epochs=2 and --steps 5 both say how long"),
            (&["--batch-size", "0"], "batch_size is 0"),
        ] {
            let error = changed(arguments).unwrap_err();
            assert!(error.to_string().contains(wanted), "{arguments:?}: {error}");
        }
    }
}
