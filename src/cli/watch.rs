//! `denoir watch`: a live page of runs, served on this machine.
//!
//! It only reads the folders of runs, so that it can neither slow nor stop a training.

mod feed;
mod feeds;
mod guard;
pub(super) mod page;
mod server;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

pub(super) use feeds::Feeds;
use guard::Guard;

use super::{note, print};
use crate::device::threads;
use crate::error::{Error, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// Runs, or folders with runs below them
    #[arg(required = true, value_name = "RUN_OR_FOLDER")]
    runs: Vec<PathBuf>,
    /// Where to serve the page; port 0: any that is free. An address other than 127.0.0.1 lets other machines
    /// in, who need the token of the printed URL [default: 127.0.0.1:6174, or another free port]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

/// Where the page is served by default.
const DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6174);

pub fn run(arguments: &Arguments) -> Result<()> {
    let feeds = Feeds::open(&arguments.runs)?;
    let place = Place::bind(arguments.listen)?;
    print(&format!("{}\n", place.url()))?;
    note("the page is served until Ctrl-C");
    server::serve(place.listener, place.guard, feeds)
}

/// A port that is taken, before anything is served there.
pub struct Place {
    listener: TcpListener,
    guard: Guard,
    address: SocketAddr,
}

impl Place {
    /// Takes the wanted port, by default one that is free.
    ///
    /// # Errors
    /// When it is in use or not this machine's, or the system gives no random numbers for a token.
    pub fn bind(wanted: Option<SocketAddr>) -> Result<Place> {
        let any = || TcpListener::bind(SocketAddr::new(DEFAULT.ip(), 0));
        let bound = match wanted {
            Some(wanted) => TcpListener::bind(wanted),
            None => TcpListener::bind(DEFAULT).or_else(|_| any()),
        };
        let taken = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let (listener, address) = taken.map_err(|e| {
            let shown = wanted.unwrap_or(DEFAULT);
            Error::new(format!("cannot serve at {shown}"))
                .hint("choose an address of this machine and a free port; port 0 takes any")
                .caused_by(e)
        })?;
        Ok(Place { listener, guard: Guard::of(address)?, address })
    }

    /// What to type into a browser.
    pub fn url(&self) -> String {
        match self.guard.token() {
            Some(token) => format!("http://{}/?token={token}", self.address),
            None => format!("http://{}/", self.address),
        }
    }

    /// Serves the page of one run beside its training, in a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve_beside(self, run: PathBuf) -> Result<()> {
        let serve = move || {
            let served =
                Feeds::open(&[run]).and_then(|feeds| server::serve(self.listener, self.guard, feeds));
            if let Err(error) = served {
                note(&format!("warning: the page is not served any more: {error}"));
            }
        };
        threads::spawn("watch".to_owned(), "serve the page", serve).map(drop)
    }
}
