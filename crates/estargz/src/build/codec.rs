//! The two ways of compression: a gzip member, or a zstd frame.

use std::io;

use libdeflater::CompressionLvl;

use super::buffer::Buffer;

/// How members are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Codec {
    /// A gzip member each.
    Gzip {
        /// 1 to 12.
        level: u8,
    },
    /// A zstd frame each.
    Zstd {
        /// 1 to 22.
        level: u8,
    },
}

/// A compressor with its tables, of use for one member after another.
pub(super) enum Compressor {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Codec {
    pub(super) fn compressor(self) -> io::Result<Compressor> {
        match self {
            Self::Gzip { level } => {
                Ok(Compressor::Gzip(libdeflater::Compressor::new(libdeflate_level(level))))
            }
            Self::Zstd { level } => zstd::bulk::Compressor::new(i32::from(level)).map(Compressor::Zstd),
        }
    }
}

/// The level of libdeflate that makes blobs at most as large as Go's gzip does with `level`, and is the
/// fastest that does.
///
/// Measured against Go 1.26 with level 9, file by file as in these blobs: size, and time of one core.
///
/// ```text
/// libdeflate                  1      2      3      4      5      6      7      8      9
/// Python modules, 97 MB    1.074  1.039  1.027  1.020  0.996  0.990
/// locales, zones, 46 MB    1.073  1.013  1.001  0.995  0.990  0.984
/// programs, 140 MB         1.043  0.995  0.988  0.985  0.963  0.959
/// all and more, 405 MB     1.055  1.009  1.000  0.995  0.975  0.969  0.966  0.964  0.963
/// seconds (Go: 42.4)         2.7    3.5    3.9    3.9    4.6    5.1    6.7   10.7   13.9
/// ```
fn libdeflate_level(level: u8) -> CompressionLvl {
    let level = match level {
        0..=2 => 1,
        3 | 4 => 2,
        5 | 6 => 3,
        7 | 8 => 4,
        9 => 5,
        10 => 6,
        11 => 8,
        _ => 12,
    };
    CompressionLvl::new(level).unwrap_or_default()
}

impl Compressor {
    /// Appends `data` to `out` as one member.
    pub(super) fn compress(&mut self, data: &[u8], out: &mut Buffer) -> io::Result<()> {
        let start = out.len();
        let len = match self {
            Self::Gzip(compressor) => {
                let room = out.grow(compressor.gzip_compress_bound(data.len()));
                compressor
                    .gzip_compress(data, room)
                    .map_err(|error| io::Error::other(format!("compressing: {error}")))?
            }
            Self::Zstd(compressor) => {
                let room = out.grow(zstd::zstd_safe::compress_bound(data.len()));
                compressor.compress_to_buffer(data, room)?
            }
        };
        out.truncate(start + len);
        Ok(())
    }
}
