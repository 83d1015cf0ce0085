//! A little server and a browser for the tests of pages.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// Serves a folder on 127.0.0.1, and gives what pages send to `/result`: the requests' path and body.
pub fn serve(folder: PathBuf) -> (u16, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (send, results) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (folder, send) = (folder.clone(), send.clone());
            std::thread::spawn(move || {
                if let Some(result) = answer(&folder, stream) {
                    let _ = send.send(result);
                }
            });
        }
    });
    (port, results)
}

fn answer(folder: &Path, mut stream: TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut head, mut length) = (String::new(), 0);
    reader.read_line(&mut head).ok()?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let path = head.split(' ').nth(1)?.to_owned();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let file = fs::read(folder.join(path.trim_start_matches('/')));
    let kind = match path.rsplit('.').next() {
        Some("js") => "text/javascript",
        Some("html") => "text/html",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    };
    let is_result = head.starts_with("POST");
    let (status, contents) = match file {
        _ if is_result => ("200 OK", Vec::new()),
        Ok(contents) => ("200 OK", contents),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let length = contents.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(&contents)).ok()?;
    is_result.then_some((path, body))
}

/// Ends the browser with the test.
pub struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn browse(profile: &Path, url: &str) -> Browser {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"].map(String::from);
    for name in std::env::var("DENOIR_BROWSER").into_iter().chain(names) {
        let started = Command::new(name)
            .args(["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--enable-unsafe-webgpu", &format!("--user-data-dir={}", profile.display()), url])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if let Ok(browser) = started {
            return Browser(browser);
        }
    }
    panic!("no Chromium: install it, or say where it is with DENOIR_BROWSER");
}
