//! Which servers there are to compare, and the commands that start them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

/// The peers of this workspace, in the order of the tables.
const RUST_PEERS: [&str; 7] =
    ["raw-uring", "raw-epoll", "tokio", "compio", "monoio", "glommio", "threads"];

/// The peers in other languages, and how they are built.
const NATIVE_PEERS: [(&str, &str, &str, &[&str]); 2] = [
    ("libuv", "peer-libuv.c", "cc", &["-O2", "-std=gnu11", "-luv", "-pthread"]),
    ("asio", "peer-asio.cpp", "c++", &["-O2", "-std=c++17", "-DASIO_STANDALONE", "-pthread"]),
];

/// A server that can be started.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// Its name in tables.
    pub name: String,
    /// Command words; `{workers}` and `{stall}` are filled in at the start.
    pub command: Vec<String>,
    /// Worker threads, if the name fixes them (`tokio@2`).
    pub workers: Option<usize>,
}

/// A server that was asked for and cannot be started.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why it is left out.
    pub reason: String,
}

impl Server {
    fn peer(name: &str, binary: &Path, workers: Option<usize>) -> Self {
        let suffix = workers.map_or(String::new(), |workers| format!("@{workers}"));
        let binary = binary.display().to_string();
        let options = ["--listen", "127.0.0.1:0", "--workers", "{workers}", "{stall}"];
        Self {
            name: format!("{name}{suffix}"),
            command: [binary.as_str()]
                .iter()
                .chain(&options)
                .map(|&word| word.to_owned())
                .collect(),
            workers,
        }
    }

    /// A server from `NAME=COMMAND`.
    pub fn external(text: &str) -> Result<Self, String> {
        let (name, command) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=COMMAND"))?;
        let command =
            shlex::split(command).ok_or_else(|| format!("unbalanced quotes in {command:?}"))?;
        if name.is_empty() || command.is_empty() {
            return Err(format!("{text:?} is not NAME=COMMAND"));
        }
        Ok(Self { name: name.to_owned(), command, workers: None })
    }

    /// The words to execute, with the placeholders filled in.
    pub fn words(&self, workers: usize, stall_marks: bool) -> Vec<String> {
        let workers = self.workers.unwrap_or(workers).to_string();
        self.command
            .iter()
            .filter(|word| stall_marks || *word != "{stall}")
            .map(|word| word.replace("{workers}", &workers).replace("{stall}", "--stall-marks"))
            .collect()
    }
}

/// Finds or builds the peers: those named, or all.
pub fn peers(names: &[String], directory: &Path) -> (Vec<Server>, Vec<Skipped>) {
    let all = RUST_PEERS.iter().copied().chain(NATIVE_PEERS.iter().map(|peer| peer.0));
    let names: Vec<String> =
        if names.is_empty() { all.map(str::to_owned).collect() } else { names.to_vec() };
    let mut servers = Vec::new();
    let mut skipped = Vec::new();
    for name in names {
        match peer(&name, directory) {
            Ok(server) => servers.push(server),
            Err(reason) => skipped.push(Skipped { name, reason }),
        }
    }
    (servers, skipped)
}

fn peer(name: &str, directory: &Path) -> Result<Server, String> {
    let (base, workers) = match name.split_once('@') {
        Some((base, workers)) => {
            let workers =
                workers.parse().map_err(|_| format!("{workers:?} is not a number of workers"))?;
            (base, Some(workers))
        }
        None => (name, None),
    };
    let base = short_name(base);
    if let Some(native) = NATIVE_PEERS.iter().find(|peer| peer.0 == base) {
        let binary = build_native(native.1, native.2, native.3, directory)?;
        return Ok(Server::peer(base, &binary, workers));
    }
    if !RUST_PEERS.contains(&base) {
        return Err("no such peer; see --list".into());
    }
    let binary = directory.join(format!("peer-{base}"));
    if !binary.exists() {
        return Err(format!("{} is missing: cargo build --release in bench/", binary.display()));
    }
    Ok(Server::peer(base, &binary, workers))
}

/// The name without the `peer-` that its binary has.
pub fn short_name(name: &str) -> &str {
    name.strip_prefix("peer-").unwrap_or(name)
}

/// Compiles a peer of `bench/cpp`, unless a binary newer than it is there.
fn build_native(
    source: &str,
    compiler: &str,
    flags: &[&str],
    directory: &Path,
) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cpp").join(source);
    let stem = source.file_stem().expect("the source has a name");
    let binary = directory.join(stem);
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if changed(&binary).is_some_and(|built| Some(built) > changed(&source)) {
        return Ok(binary);
    }
    let output = Command::new(compiler)
        .arg(&source)
        .arg("-o")
        .arg(&binary)
        .args(flags)
        .output()
        .map_err(|error| format!("{compiler}: {error}"))?;
    if output.status.success() {
        return Ok(binary);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let first = errors.lines().find(|line| line.contains("error")).unwrap_or("failed");
    Err(format!("{compiler}: {first}"))
}

/// The names of all peers, for `--list`.
pub fn peer_names() -> impl Iterator<Item = &'static str> {
    RUST_PEERS.into_iter().chain(NATIVE_PEERS.iter().map(|peer| peer.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in() {
        let server =
            Server::external("mine=/bin/mine --workers {workers} {stall} 'two words'").unwrap();
        assert_eq!(server.words(3, false), ["/bin/mine", "--workers", "3", "two words"]);
        assert_eq!(server.words(1, true)[3], "--stall-marks");
        assert!(Server::external("no command").is_err());
        assert!(Server::external("name='open").is_err());
    }

    #[test]
    fn a_missing_peer_says_why() {
        let (servers, skipped) = peers(
            &["tokio".into(), "nonsense".into(), "tokio@x".into()],
            Path::new("/nonexistent"),
        );
        assert!(servers.is_empty());
        assert!(skipped[0].reason.contains("cargo build"));
        assert!(skipped[1].reason.contains("no such peer"));
        assert!(skipped[2].reason.contains("number of workers"));
    }
}
