//! The live page as a browser meets it, over plain sockets; the report; and the events of TensorBoard.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails, tiny_run};
use crate::place::program;

/// A server that ends with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    token: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(folder: &Path, arguments: &[&str]) -> Server {
        let mut command = Command::new(program());
        command.current_dir(folder).arg("watch").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let rest = url.trim().strip_prefix("http://").unwrap_or_else(|| panic!("no URL but {url:?}"));
        let (address, query) = rest.split_once('/').unwrap();
        let token = query.strip_prefix("?token=").map(str::to_owned);
        Server { child, address: address.parse().unwrap(), token }
    }

    /// Sends a request as it stands.
    fn send(&self, request: &str) -> TcpStream {
        let port = self.address.port();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Status, head and body of an answer.
    fn ask(&self, method: &str, target: &str, host: &str) -> (u16, String, Vec<u8>) {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut answer = Vec::new();
        self.send(&head).read_to_end(&mut answer).unwrap();
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, answer[at + 4..].to_vec())
    }

    fn get(&self, target: &str) -> (u16, String, Vec<u8>) {
        self.ask("GET", target, "localhost")
    }

    /// The events from a cursor on.
    fn events(&self, cursor: Option<&str>) -> Events {
        let last = cursor.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let stream = self.send(&format!("GET /events HTTP/1.1\r\nHost: localhost\r\n{last}\r\n"));
        Events(BufReader::new(stream))
    }
}

struct Events(BufReader<TcpStream>);

impl Events {
    /// The next event: its id and what it says of the only run.
    fn next(&mut self) -> (String, Value) {
        let (mut id, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the events end");
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.trim().to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                let update: Value = serde_json::from_str(text).unwrap();
                // The data may stand before the id.
                while id.is_empty() {
                    line.clear();
                    self.0.read_line(&mut line).unwrap();
                    id = line.strip_prefix("id: ").map(|id| id.trim().to_owned()).unwrap_or_default();
                }
                return (id, update["runs"][0].clone());
            }
        }
    }
}

#[test]
fn a_run_is_served_and_followed() {
    let folder = TempDir::new().unwrap();
    let run = tiny_run(folder.path(), &["--set", "evaluate_every=2", "--sample-every", "2"]);
    fs::write(folder.path().join("secret.png"), "not for the page").unwrap();
    let server = Server::start(folder.path(), &["run", "--listen", "127.0.0.1:0"]);
    assert!(server.token.is_none());

    let (status, head, page) = server.get("/");
    assert_eq!(status, 200, "{head}");
    for header in
        ["content-security-policy: default-src 'self'", "nosniff", "cache-control: no-store", "text/html"]
    {
        assert!(head.contains(header), "{header} in {head}");
    }
    assert!(!head.contains("access-control"), "{head}");
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("new EventSource(") && page.contains(r#"id="data">null</script>"#));
    assert!(!page.contains("http://") && !page.contains("https://"), "the page asks nobody else");
    let (status, _, body) = server.ask("HEAD", "/", "localhost:1234");
    assert_eq!((status, body.len()), (200, 0));
    assert_eq!(server.ask("POST", "/", "localhost").0, 405);
    for host in ["evil.com", "localhost.evil.com", "10.1.2.3"] {
        assert_eq!(server.ask("GET", "/", host).0, 421, "{host}");
    }

    // All that is known comes first.
    let mut events = server.events(None);
    let (id, told) = events.next();
    assert_eq!(told["metrics"]["step"], serde_json::json!([1, 2, 3, 4]));
    assert_eq!(told["evaluations"]["step"], serde_json::json!([2, 4]));
    assert_eq!((told["head"]["state"].as_str(), told["head"]["steps"].as_u64()), (Some("finished"), Some(4)));
    let first: Value =
        serde_json::from_str(fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().next().unwrap())
            .unwrap();
    assert_eq!(told["metrics"]["columns"]["loss"][0], first["loss"]);
    let pictures = told["pictures"].as_array().unwrap();
    let names: Vec<&str> = pictures.iter().map(|picture| picture["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["backward.png", "forward.png", "step-00000002.png", "step-00000004.png"]);

    // Pictures of the list are sent, and nothing else.
    let (status, head, png) = server.get(&format!("/{}", pictures[2]["url"].as_str().unwrap()));
    assert_eq!((status, head.contains("image/png")), (200, true));
    assert_eq!(png, fs::read(run.join("samples/step-00000002.png")).unwrap());
    for target in [
        "/picture/0/../../secret.png",
        "/picture/0/..%2f..%2fsecret.png",
        "/picture/0/%2e%2e/secret.png",
        "/picture/0/samples%2fstep-00000002.png",
        "/picture/0/recipe.toml",
        "/picture/1/step-00000002.png",
        "/picture/-1/step-00000002.png",
        "/picture/0/",
        "/../../../../etc/passwd",
        "/recipe.toml",
        "/run/metrics.jsonl",
    ] {
        assert_eq!(server.get(target).0, 404, "{target}");
    }
    // A head without an end.
    let mut answer = String::new();
    let endless = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(20_000));
    let _ = server.send(&endless).read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");

    // What is appended comes at once, also where only half of it was there.
    let mut metrics = OpenOptions::new().append(true).open(run.join("metrics.jsonl")).unwrap();
    let line = r#"{"step":5,"loss":0.25,"grad_norm":1.0,"lr":0.1,"images_per_s":1.0,"seconds":9.5}"#;
    metrics.write_all(&line.as_bytes()[..20]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = Instant::now();
    metrics.write_all(format!("{}\n", &line[20..]).as_bytes()).unwrap();
    let (next, told) = events.next();
    let took = before.elapsed();
    println!("an appended line arrived after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!((told["anew"].as_bool(), told["metrics"]["step"].as_array().unwrap().len()), (Some(false), 1));
    assert_eq!(told["metrics"]["columns"]["loss"], serde_json::json!([0.25]));
    // A browser that comes back goes on where it was; one with a cursor of another server gets all.
    assert_eq!(server.events(Some(&id)).next(), (next, told));
    assert_eq!(server.events(Some("1-7")).next().1["metrics"]["step"].as_array().unwrap().len(), 5);
    // As a resumed run drops what it does again.
    fs::write(run.join("metrics.jsonl"), format!("{first}\n")).unwrap();
    let (_, told) = events.next();
    assert_eq!((told["anew"].as_bool(), &told["metrics"]["step"]), (Some(true), &serde_json::json!([1])));

    let taken = server.address.to_string();
    fails(
        folder.path(),
        &["watch", "run", "--listen", &taken],
        1,
        &["cannot serve at 127.0.0.1:", "free port"],
    );
    let mut train = vec!["train", "--out", "never", "--steps", "2"];
    train.extend(TINY);
    let watch = format!("--watch={taken}");
    train.push(&watch);
    fails(folder.path(), &train, 1, &["cannot serve at 127.0.0.1:"]);
    assert!(!folder.path().join("never").exists(), "the run must not begin");
    fails(folder.path(), &["watch", "checkpoints"], 1, &["folder checkpoints cannot be listed"]);
    fails(folder.path(), &["watch", "run/samples"], 1, &["no run in run/samples"]);
}

#[test]
fn other_addresses_need_the_token() {
    let folder = TempDir::new().unwrap();
    tiny_run(folder.path(), &[]);
    let server = Server::start(folder.path(), &[".", "--listen", "0.0.0.0:0"]);
    let token = server.token.clone().unwrap();
    assert_eq!(token.len(), 32);
    for target in ["/", "/events", "/picture/0/forward.png", "/?token=0123456789abcdef0123456789abcdef"] {
        assert_eq!(server.get(target).0, 403, "{target}");
    }
    for target in ["/", "/picture/0/forward.png"] {
        let status = server.get(&format!("{target}?token={token}")).0;
        // The picture is in the list once somebody has asked for events.
        assert_eq!(status, if target == "/" { 200 } else { 404 }, "{target}");
    }
    assert_eq!(server.ask("GET", &format!("/?token={token}"), "evil.com").0, 421);
}

#[test]
fn a_training_serves_its_own_page() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(program());
    command.current_dir(folder.path()).args(["train", "--out", "run", "--steps", "100000"]).args(TINY);
    command.args(["--watch=127.0.0.1:0", "--sample-every", "never"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let url =
        lines.filter_map(|line| line.strip_prefix("watch it at http://").map(str::to_owned)).next().unwrap();
    let server = Server { child, address: url.trim_end_matches('/').parse().unwrap(), token: None };
    let mut events = server.events(None);
    let told = events.next().1;
    assert_eq!(told["head"]["state"], "running");
    let mut steps = 0;
    while steps < 5 {
        steps += events.next().1["metrics"]["step"].as_array().unwrap().len();
    }
}

#[test]
fn a_report_is_the_page_with_its_data() {
    let folder = TempDir::new().unwrap();
    let run = tiny_run(folder.path(), &["--set", "about=</script><script>alert(1)"]);
    let report = ["report", "run", "--out", "report.html"];
    let output = denoir(folder.path(), &report);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(
        !page.contains("</script><script>alert") && !page.contains("http://") && !page.contains("https://")
    );
    let data = page.split_once(r#"id="data">"#).unwrap().1.split_once("</script>").unwrap().0;
    let told = serde_json::from_str::<Value>(data).unwrap()["runs"][0].clone();
    assert_eq!(told["metrics"]["step"], serde_json::json!([1, 2, 3, 4]));
    assert!(told["head"]["recipe"].as_str().unwrap().contains("</script>"));
    let pictures = told["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 3);
    assert!(
        pictures.iter().all(|p| p["url"].as_str().unwrap().starts_with("data:image/png;base64,iVBORw0KGgo"))
    );
    // A picture that is gone meanwhile, and numbers of no use.
    fs::write(run.join("samples/step-00000004.png"), "").unwrap();
    fs::write(run.join("metrics.jsonl"), "{}\n[1]\nnull\n").unwrap();
    fs::write(run.join("evaluations.jsonl"), b"\xff\n{\"step\":1e99}\n").unwrap();
    assert!(denoir(folder.path(), &report).status.success());
    fails(folder.path(), &["report", "run", "--out", "report.png"], 2, &["name a file such as report.html"]);
}

/// The page in a browser without a window, where there is one: its script runs, draws and finds no fault.
#[test]
fn a_browser_draws_the_report() {
    let folder = TempDir::new().unwrap();
    tiny_run(folder.path(), &["--set", "evaluate_every=2", "--sample-every", "2"]);
    let profile = ["profile", "run", "--device", "cpu", "--steps", "1", "--warmup", "0"];
    assert!(denoir(folder.path(), &profile).status.success());
    assert!(denoir(folder.path(), &["report", "run"]).status.success());
    let page = format!("file://{}", folder.path().join("report.html").display());
    let draw = |browser: &&str| {
        let mut command = Command::new(browser);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]);
        command.arg(format!("--user-data-dir={}", folder.path().join("browser").display()));
        command.args(["--dump-dom", &page]).output().ok()
    };
    let Some(drawn) = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(draw) else {
        eprintln!("SKIPPED: no Chromium here, so that no browser has drawn the page");
        return;
    };
    let dom = String::from_utf8_lossy(&drawn.stdout);
    for wanted in [
        "4 of 4",
        "<dt class=\"\">gradient</dt>",
        "step 4</div>",
        "2 pictures over the steps",
        "recipe, run",
        "plan of a step, run",
        "largest binding",
        "profile of a step, run",
        "plain step",
    ] {
        assert!(dom.contains(wanted), "{wanted:?} in {dom}");
    }
    // Loss, by quarter of t, held out, the same by quarter, gradient, learning rate, images a second, memory.
    assert_eq!(dom.matches("<canvas").count(), 7 + usize::from(cfg!(target_os = "linux")), "{dom}");
}

#[test]
fn a_run_writes_events_for_tensorboard_where_that_is_wanted() {
    let folder = TempDir::new().unwrap();
    let run = tiny_run(folder.path(), &["--set", "tensorboard=true", "--set", "evaluate_every=2"]);
    let resumed = ["train", "--resume", "run", "--steps", "6", "--device", "cpu"];
    assert!(denoir(folder.path(), &resumed).status.success());
    let files: Vec<_> =
        fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        assert!(file.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."), "{file:?}");
        let bytes = fs::read(file).unwrap();
        let holds = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
        // The records themselves are parsed in src/run/tensorboard.rs, and read by TensorBoard in
        // tools/reference/tensorboard_check.py.
        let tags =
            ["brain.Event:2", "loss_by_t/", "evaluation/loss", "grad_norm", "samples", "tensorboard = true"];
        tags.iter().for_each(|tag| assert!(holds(tag), "{tag}"));
    }
    let without = TempDir::new().unwrap();
    assert!(!tiny_run(without.path(), &[]).join("tensorboard").exists());
}
