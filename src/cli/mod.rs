//! The command line: arguments, output and exit status.

mod bench;
mod completions;
mod data;
mod device_args;
mod devices;
mod diff;
mod evaluate;
mod export;
mod figure;
mod help;
mod images;
mod import;
mod invert;
mod latents;
mod likelihood;
mod opening;
mod output;
mod pace;
mod profile;
mod prompting;
mod recipes;
mod report;
mod runs;
mod sample;
mod sampling;
mod settings;
mod signals;
mod train;
mod tune;
mod watch;
mod web;

use std::io::Write;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Instant;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde::de::{DeserializeOwned, IntoDeserializer};

use crate::data::Dataset;
use crate::error::{Error, Result, one_line};
use crate::names::shown;
use crate::recipe::whole;
use crate::sample::Trained;

/// Trains and samples diffusion models on any GPU, or on the CPU, without a framework.
#[derive(Parser)]
#[command(name = "denoir", version, propagate_version = true, max_term_width = 110)]
#[command(disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every adapter, its limits and features, and which one `auto` takes
    Devices(devices::Arguments),
    /// Every recipe, a line each; one as TOML
    Recipes(recipes::Arguments),
    /// The images of a data set: statistics, a contact sheet (PATH.png) or a folder
    Data(data::Arguments),
    /// Train a diffusion model
    Train(train::Arguments),
    /// Every run below a folder: steps, losses, state, and what its recipe has of its own
    Runs(runs::Arguments),
    /// How two runs differ
    Diff(diff::Arguments),
    /// A live page of runs on 127.0.0.1: losses, pace, samples over the steps
    Watch(watch::Arguments),
    /// The same page as one file
    Report(report::Arguments),
    /// Draw samples from a trained run
    Sample(Box<sample::Arguments>),
    /// The noise from which DDIM gives back the images
    Invert(invert::Arguments),
    /// How good the samples of runs are, against held-out images
    Evaluate(evaluate::Arguments),
    /// How likely images are to a run: bits per dimension, and their curves over t
    Likelihood(likelihood::Arguments),
    /// The field's figures of a run, as PNG or GIF
    Figure(figure::Arguments),
    /// Images to latents of a trained VAE
    Encode(latents::EncodeArguments),
    /// Latents back to images
    Decode(latents::DecodeArguments),
    /// A folder of the diffusers library, or a file of Stable Diffusion, as a run, which can be trained on
    Import(import::Arguments),
    /// A run as a folder that the diffusers library loads
    Export(export::Arguments),
    /// A static page that samples a run in a browser, with WebGPU and the same kernels
    Web(web::Arguments),
    /// Time fixed workloads, after their results are checked
    #[command(subcommand)]
    Bench(bench::What),
    /// Where the time of a step goes: each kernel beside the device's ceilings
    Profile(profile::Arguments),
    /// Time the variants of a GPU's kernels ahead, and remember the fastest
    Tune(tune::Arguments),
    /// A script that lets a shell complete commands and options
    Completions(completions::Arguments),
    /// Write manual pages
    Man(completions::ManArguments),
    /// Help of a command, or of the keys of recipes
    Help(help::Arguments),
}

/// Runs the program and gives its exit status: 0 for success, 2 for a mistake in the command, 128 and its
/// number for a signal that stopped a training run, 1 otherwise.
pub fn main() -> ExitCode {
    signals::outlive_file_size_limit();
    signals::end_without_memory_in_words();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Help and version are results, a mistake in the command is none.
            let printed = e.print().and_then(|()| std::io::stdout().flush());
            if !e.use_stderr()
                && let Err(error) = check_printed(printed)
            {
                return failed(&error);
            }
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    // A panic is a defect of denoir: print one line to report instead of a trace.
    std::panic::set_hook(Box::new(|info| {
        if crate::device::gpu::expects_panic() {
            return;
        }
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or("unknown").lines().collect::<Vec<_>>().join(" ");
        note(&format!(
            "error: defect in denoir ({place}): {text}; please report it with the command that you ran"
        ));
    }));
    let outcome = std::panic::catch_unwind(|| run(arguments.command));
    match outcome {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => failed(&error),
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(command: Command) -> Result<ExitCode> {
    if !matches!(command, Command::Devices(_) | Command::Recipes(_) | Command::Runs(_)) {
        crate::device::threads::start()?;
    }
    let done = match command {
        Command::Devices(a) => devices::run(&a),
        Command::Recipes(a) => recipes::run(&a),
        Command::Data(a) => data::run(&a),
        Command::Train(a) => return train::run(&a),
        Command::Runs(a) => runs::run(&a),
        Command::Diff(a) => diff::run(&a),
        Command::Watch(a) => watch::run(&a),
        Command::Report(a) => report::run(&a),
        Command::Sample(a) => sample::run(&a),
        Command::Invert(a) => invert::run(&a),
        Command::Evaluate(a) => evaluate::run(&a),
        Command::Likelihood(a) => likelihood::run(&a),
        Command::Figure(a) => figure::run(&a),
        Command::Encode(a) => latents::encode(&a),
        Command::Decode(a) => latents::decode(&a),
        Command::Import(a) => import::run(&a),
        Command::Export(a) => export::run(&a),
        Command::Web(a) => web::run(&a),
        Command::Bench(a) => bench::run(&a),
        Command::Profile(a) => profile::run(&a),
        Command::Tune(a) => tune::run(&a),
        Command::Completions(a) => completions::run(&a),
        Command::Man(a) => completions::man(&a),
        Command::Help(a) => help::run(&a),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn failed(error: &Error) -> ExitCode {
    note(&error.report());
    ExitCode::from(error.exit_code())
}

/// Prints results.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    check_printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// An error if results could not be printed. A reader that closes the pipe early is none.
fn check_printed(printed: std::io::Result<()>) -> Result<()> {
    match printed {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new("cannot write to standard output").hint("make room where it goes").caused_by(e))
        }
        _ => Ok(()),
    }
}

/// Prints lines on standard error, without commands to the terminal; if that is closed, the work goes on.
fn note(text: &str) {
    let lines: Vec<String> = text.split('\n').map(one_line).collect();
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
}

/// A progress bar on standard error; nothing where that is no terminal.
fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// Moves a bar on to `done` of `all`; where it is hidden, prints a line every ten seconds.
fn count(bar: &ProgressBar, noted: &mut Option<Instant>, doing: &str, done: u64, all: u64) {
    bar.set_length(all);
    bar.set_position(done);
    if bar.is_hidden() && noted.is_none_or(|at| at.elapsed().as_secs() >= 10) {
        *noted = Some(Instant::now());
        note(&format!("{doing}: {done} of {all}"));
    }
}

/// Shows each message beside a bar.
fn messages(bar: &ProgressBar) -> impl FnMut(&str) {
    |message| {
        bar.set_message(message.to_owned());
        bar.tick();
    }
}

/// Moves a bar on by one.
fn ticks(bar: &ProgressBar) -> impl FnMut() -> Result<()> {
    || {
        bar.inc(1);
        Ok(())
    }
}

/// Passes on what a data set warns of.
fn note_warnings(data: &dyn Dataset) {
    data.warnings().iter().for_each(|warning| note(&format!("warning: {warning}")));
}

/// An argument with bytes that are no UTF-8 as text, from which `names::path_of` finds the path.
fn any_text() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|argument| argument.into_string().unwrap_or_else(|other| shown(&other)))
}

/// Tells what was remarked on a model that was opened.
fn note_remarks(trained: &Trained) {
    trained.remarks().iter().for_each(|remark| note(&format!("note: {remark}")));
}

/// Prints a report: one JSON object, for programs, or its description.
fn print_report<R: Serialize>(report: &R, json: bool, describe: impl FnOnce(&R) -> String) -> Result<()> {
    if !json {
        return print(&describe(report));
    }
    let text = serde_json::to_string(report).map_err(|e| Error::new("cannot write JSON").caused_by(e))?;
    print(&(text + "\n"))
}

/// Parses the number of an option within a range; a whole number may be written `1e3`.
fn number<T: TryFrom<u64> + 'static>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> std::result::Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let within = whole(text)?;
        let number = range.contains(&within).then(|| T::try_from(within).ok()).flatten();
        number.ok_or_else(|| format!("it must be from {} to {}", range.start(), range.end()))
    }
}

/// Parses the number of an option that is checked later.
fn any<T: TryFrom<u64>>(text: &str) -> std::result::Result<T, String> {
    T::try_from(whole(text)?).map_err(|_| "the number is too large".to_owned())
}

/// The value of an option by the name that it has in files.
fn named<T: DeserializeOwned>(name: &str) -> std::result::Result<T, serde::de::value::Error> {
    T::deserialize(name.into_deserializer())
}

/// A line for each name and its value, the values `width` and one columns to the right.
fn table(width: usize, rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("{name:width$} {value}\n")).collect()
}

/// Rows of texts, each column as wide as its widest text.
fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|text| one_line(text)).collect()).collect();
    let length = |text: &String| text.chars().count();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        widths.iter_mut().zip(row).for_each(|(width, text)| *width = (*width).max(length(text)));
    }
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(text, &width)| format!("{text:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// 1707009 as 1,707,009.
fn thousands(n: usize) -> String {
    HumanCount(n as u64).to_string()
}
