//! Keeps descriptors in another process, simply: what is kept is named over a socket, by its number in the process that
//! has it, and fetched from there (`pidfd_getfd`). The real keeper does it better and is tested elsewhere.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use lazyfs::keeper::Keep;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

type Names = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

fn fetch(process: i32, number: &str) -> io::Result<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(process).unwrap(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number.parse().unwrap(), PidfdGetfdFlags::empty())?)
}

/// Those that are kept, in the process that keeps them.
pub struct Kept(Names);

impl Kept {
    pub fn listen(at: &Path) -> Self {
        let names = Names::default();
        let (listener, kept) = (UnixListener::bind(at).unwrap(), Arc::clone(&names));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, names) = (stream.unwrap(), Arc::clone(&kept));
                std::thread::spawn(move || serve(&stream, &names));
            }
        });
        Self(names)
    }

    /// Nothing is kept any more that nobody could want.
    pub fn check(&self) {
        let names = self.0.lock().unwrap();
        assert!(names.len() <= 64, "{} descriptors are kept: {:?}", names.len(), names.keys());
    }
}

/// Ends with the other side.
fn serve(mut stream: &UnixStream, names: &Names) {
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let words: Vec<_> = line.split(' ').collect();
        let mut names = names.lock().unwrap();
        let answer = match words[..] {
            ["names"] => names.keys().cloned().collect::<Vec<_>>().join(" "),
            ["get", name] => names.get(name).map_or_else(String::new, |fd| fd.as_raw_fd().to_string()),
            ["keep", process, number, name] => match fetch(process.parse().unwrap(), number) {
                Ok(descriptor) => {
                    names.insert(name.to_owned(), descriptor);
                    "kept".to_owned()
                }
                // It was killed meanwhile.
                Err(_) => return,
            },
            ["forget", name] => {
                names.remove(name);
                String::new()
            }
            _ => panic!("{line}"),
        };
        drop(names);
        if writeln!(stream, "{answer}").is_err() {
            return;
        }
    }
}

/// The other side.
#[derive(Debug)]
pub struct Keeper(Mutex<BufReader<UnixStream>>, i32);

impl Keeper {
    /// `process` is that of the keeper.
    pub fn connect(at: &Path, process: i32) -> Self {
        Self(Mutex::new(BufReader::new(UnixStream::connect(at).unwrap())), process)
    }

    fn ask(&self, question: &str) -> io::Result<String> {
        let mut stream = self.0.lock().unwrap();
        writeln!(stream.get_mut(), "{question}")?;
        let mut answer = String::new();
        if stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer.trim_end().to_owned())
    }
}

impl Keep for Keeper {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.ask("names")?.split_whitespace().map(str::to_owned).collect())
    }

    fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let number = self.ask(&format!("get {name}"))?;
        if number.is_empty() { Ok(None) } else { fetch(self.1, &number).map(Some) }
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.ask(&format!("keep {} {} {name}", std::process::id(), descriptor.as_raw_fd())).map(drop)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.ask(&format!("forget {name}")).map(drop)
    }
}
