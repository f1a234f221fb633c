//! On a small ext4 of its own, which is really full.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)] // helpers of tests

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::disk::Os;
use crate::fill::Means;
use crate::keeper::KeepHere;
use crate::space::{Limits, Space};

const CHUNK: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(400);

/// A file system of 48 MiB; gone when dropped, also if the test failed.
struct SmallDisk {
    at: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where this process may not mount: the test is skipped, or fails where it must not be.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("disk"));
        std::fs::create_dir(&at).unwrap();
        File::create(&image).unwrap().set_len(48 << 20).unwrap();
        let ran = |command: &mut Command| {
            command.output().map_err(|error| error.to_string()).and_then(|output| {
                if output.status.success() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&output.stderr).into_owned())
                }
            })
        };
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            .and_then(|()| ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)));
        match made {
            Ok(()) => Some(Self { at, _folder: folder }),
            Err(error) => {
                assert!(std::env::var_os("PANTALA_E2E").is_none_or(|mode| mode != "require"), "{error}");
                println!("skipped, because no small disk can be mounted here: {error}");
                None
            }
        }
    }

    /// Takes all that is free.
    fn fill_up(&self) -> PathBuf {
        let path = self.at.join("others");
        let file = File::create(&path).unwrap();
        let mut at = 0;
        for piece in [1 << 20, 64 << 10, 4096] {
            while file.write_all_at(&vec![1; piece], at).is_ok() {
                at += piece as u64;
            }
        }
        file.sync_all().ok();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn no_limits() -> Arc<Space> {
    let any = File::open("/").unwrap().into();
    Arc::new(Space::new(any, Limits { budget: None, keep_free: 0 }))
}

fn fill_in(folder: &Path) -> Arc<Fill> {
    let means = Means { disk: Arc::new(Os), keep: &KeepHere::default(), space: no_limits() };
    Arc::new(Fill::open(means, folder, (Digest::of(b"toc"), 32, 32 * CHUNK), []).unwrap())
}

fn bytes_of(chunk: u32) -> Vec<u8> {
    vec![chunk as u8 + 1; CHUNK as usize]
}

fn lend(reserve: &Arc<Reserve>, fill: &Arc<Fill>, chunk: u32) -> Result<Lease, Refused> {
    let place = ByteRange::at(u64::from(chunk) * CHUNK, CHUNK);
    reserve.lend(fill, (Digest::of(b"toc"), chunk), place, &bytes_of(chunk))
}

fn read(fill: &Fill, chunk: u32) -> Vec<u8> {
    let mut buffer = vec![0; CHUNK as usize];
    fill.read(u64::from(chunk) * CHUNK, &mut buffer).unwrap();
    buffer
}

#[test]
fn on_a_full_disk_chunks_come_and_go_and_stay_when_there_is_room() {
    let Some(disk) = SmallDisk::new() else { return };
    let folder = disk.at.join("layer");
    std::fs::create_dir(&folder).unwrap();
    let fill = fill_in(&folder);
    fill.store(0, 0, &bytes_of(0)).unwrap();
    fill.flush().unwrap();
    let reserve = Reserve::new(File::open(&disk.at).unwrap().into(), no_limits(), PATIENCE);
    assert!(matches!(lend(&reserve, &fill, 9), Err(Refused::Never(_))), "nobody wanted a reserve");
    reserve.hold(7 << 19).unwrap();
    let others = disk.fill_up();

    let refused = fill.store(1, CHUNK, &bytes_of(1)).unwrap_err();
    assert!(is_full(&refused) && !fill.has(1));
    // Three fit, and a little more; what is held is not taken away.
    let mut leases: Vec<Lease> = (1..4).map(|chunk| lend(&reserve, &fill, chunk).unwrap()).collect();
    assert!(matches!(lend(&reserve, &fill, 4), Err(Refused::Wait(_))));
    for chunk in 1..4 {
        assert_eq!(read(&fill, chunk), bytes_of(chunk));
        assert!(!fill.has(chunk as usize), "a crash would promise a hole");
    }
    // Given back, and still not taken before its time.
    leases.remove(0);
    let given_back = Instant::now();
    let rest = match lend(&reserve, &fill, 4) {
        Err(Refused::Wait(rest)) => rest,
        other => panic!("taken from somebody who may still read it: {:?}", other.err()),
    };
    assert!(rest <= PATIENCE && read(&fill, 1) == bytes_of(1));
    // Who needs it again keeps it.
    drop(reserve.lease((Digest::of(b"toc"), 1)).unwrap());
    std::thread::sleep(PATIENCE.checked_sub(given_back.elapsed()).unwrap_or_default() / 2);
    assert!(matches!(lend(&reserve, &fill, 4), Err(Refused::Wait(_))));
    std::thread::sleep(PATIENCE);
    let fourth = lend(&reserve, &fill, 4).unwrap();
    assert_eq!(read(&fill, 4), bytes_of(4));
    assert_eq!(read(&fill, 1), vec![0; CHUNK as usize], "it made room");
    assert!(reserve.lease((Digest::of(b"toc"), 1)).is_none());
    assert_eq!((read(&fill, 0), read(&fill, 2), read(&fill, 3)), (bytes_of(0), bytes_of(2), bytes_of(3)));
    drop((leases, fourth));

    // A long read goes on, at the pace at which places become free.
    for chunk in 5..12 {
        let lease = loop {
            match lend(&reserve, &fill, chunk) {
                Ok(lease) => break lease,
                Err(Refused::Wait(rest)) => std::thread::sleep(rest),
                Err(Refused::Never(error)) => panic!("chunk {chunk}: {error}"),
            }
        };
        assert_eq!(read(&fill, chunk), bytes_of(chunk));
        drop(lease);
    }
    assert!(reserve.recover().is_empty(), "the disk is still full");

    std::fs::remove_file(others).unwrap();
    let kept = reserve.recover();
    assert!(!kept.is_empty() && reserve.len() == 7 << 19);
    for ((_, chunk), fill, _) in &kept {
        assert!(fill.adopt(*chunk as usize));
    }
    fill.flush().unwrap();
    drop(fill);
    let again = fill_in(&folder);
    assert!(again.has(0));
    for chunk in again.present().ones() {
        assert_eq!(read(&again, chunk as u32), bytes_of(chunk as u32));
    }
    assert_eq!(again.present().ones().count(), kept.len() + 1);
}

#[test]
fn a_chunk_that_was_kept_meanwhile_is_not_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let fill = fill_in(folder.path());
    let reserve = Reserve::new(File::open(folder.path()).unwrap().into(), no_limits(), Duration::ZERO);
    reserve.hold(3 << 19).unwrap();
    drop(lend(&reserve, &fill, 1).unwrap());
    fill.store(1, CHUNK, &bytes_of(1)).unwrap();
    drop(lend(&reserve, &fill, 2).unwrap_err());
    assert_eq!(read(&fill, 1), bytes_of(1));
    // Nothing could be punched, so nothing came back: until the disk has room.
    reserve.recover();
    assert_eq!(reserve.len(), 3 << 19);
    let before = std::fs::metadata(folder.path().join("data")).unwrap().blocks();
    drop(lend(&reserve, &fill, 2).unwrap());
    drop(lend(&reserve, &fill, 3).unwrap());
    assert_eq!(read(&fill, 2), vec![0; CHUNK as usize]);
    let after = std::fs::metadata(folder.path().join("data")).unwrap().blocks();
    assert_eq!(after - before, CHUNK / 512, "the blocks of the one that went are given back");
}
