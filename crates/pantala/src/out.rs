//! Standard output. Whoever reads it may leave (`pantala image inspect … | head`): that is no failure, and
//! what is not wanted any more is not written.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Writes `text`.
///
/// # Errors
/// If it cannot be written, as on a full disk; not if nobody reads it.
pub fn print(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), text.as_ref()).context("cannot write the output")
}

fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is() {
        assert!(write(&mut Fails(ErrorKind::BrokenPipe), b"x").is_ok());
        assert!(write(&mut Fails(ErrorKind::StorageFull), b"x").is_err());
    }
}
