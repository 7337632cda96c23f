//! What the first bytes of a picture say of it, and whether its last bytes are there. Nothing is decoded.
use crate::error::RowError;

/// The most pixels a picture may have: 8,192 by 8,192. With four channels and a copy or two, it decodes in less than a GiB.
pub(crate) const MOST_PIXELS: u64 = 1 << 26;

/// Size and form of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The form of the file.
    pub(crate) format: Format,
    /// Columns of pixels as stored.
    pub(crate) width: u32,
    /// Rows of pixels as stored.
    pub(crate) height: u32,
    /// EXIF orientation, 1 to 8; from 5 on, rows are to be shown as columns.
    pub(crate) orientation: u8,
}

/// The forms that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// GIF.
    Gif,
    /// WebP.
    Webp,
    /// BMP.
    Bmp,
}

impl Header {
    /// Height and width of the picture as it is to be seen.
    #[must_use]
    pub(crate) fn upright(&self) -> (u32, u32) {
        if self.orientation > 4 { (self.width, self.height) } else { (self.height, self.width) }
    }
}

fn cut(what: &str) -> RowError {
    RowError::new(
        "media_truncated",
        format!("the {what} ends too early, as a download that broke off does; get it again"),
    )
}

fn broken(what: &str) -> RowError {
    RowError::new("media_broken", format!("{what}; get it again or leave it out"))
}

/// Read the header of a picture.
///
/// # Errors
/// [`RowError`]: `media_broken` for bytes that are no picture, `media_truncated` for one without its end, `media_empty`
/// for one without pixels, `media_too_large` for one that would take gigabytes to decode, `media_format` for one with 16
/// bits a channel or several frames, which the models' processors read wrong.
pub(crate) fn read(bytes: &[u8]) -> Result<Header, RowError> {
    let header = match bytes {
        [] => return Err(RowError::new("media_empty", "the file is empty; get it again or leave it out")),
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, rest @ ..] => png(rest)?,
        [0xff, 0xd8, rest @ ..] => jpeg(rest)?,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', rest @ ..] => gif(rest)?,
        [b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'E', b'B', b'P', rest @ ..] => {
            let size = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            if size > rest.len() + 4 {
                return Err(cut("WebP"));
            }
            webp(&rest[..size.saturating_sub(4)])?
        }
        [b'B', b'M', ..] => bmp(bytes)?,
        _ => return Err(broken("not a picture in PNG, JPEG, GIF, WebP or BMP form")),
    };
    let Header { width, height, .. } = header;
    if width == 0 || height == 0 {
        return Err(RowError::new("media_empty", format!("the picture has {width} by {height} pixels; leave it out")));
    }
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        let why = format!(
            "the picture has {width} by {height} pixels, the most is {MOST_PIXELS}; shrink it first: mogrify -resize \
             '{MOST_PIXELS}@>' FILE"
        );
        return Err(RowError::new("media_too_large", why));
    }
    Ok(header)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn le16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn several(what: &str) -> RowError {
    RowError::new(
        "media_format",
        format!("the {what} has several frames; save the one that is meant as a picture of its own"),
    )
}

/// Chunks to the end: length, name, data, checksum.
fn png(bytes: &[u8]) -> Result<Header, RowError> {
    if bytes.get(4..8) != Some(b"IHDR") {
        return Err(if bytes.len() < 8 { cut("PNG") } else { broken("the PNG has no header") });
    }
    let (Some(width), Some(height), Some(depth)) = (be32(bytes, 8), be32(bytes, 12), bytes.get(16)) else {
        return Err(cut("PNG"));
    };
    if *depth == 16 {
        return Err(RowError::new("media_format", "the PNG has 16 bits a channel; save it with 8"));
    }
    let (mut at, mut orientation) = (0, 1);
    loop {
        let Some(length) = be32(bytes, at).map(|length| length as usize) else { return Err(cut("PNG")) };
        let Some(name) = bytes.get(at + 4..at + 8) else { return Err(cut("PNG")) };
        let Some(data) = bytes.get(at + 8..).and_then(|rest| rest.get(..length)) else { return Err(cut("PNG")) };
        match name {
            b"IEND" => return Ok(Header { format: Format::Png, width, height, orientation }),
            b"acTL" => return Err(several("PNG")),
            b"eXIf" => orientation = exif(data).unwrap_or(1),
            _ => {}
        }
        at += 12 + length;
    }
}

/// Segments up to the picture's data; the end mark is looked for behind them.
fn jpeg(bytes: &[u8]) -> Result<Header, RowError> {
    let (mut at, mut orientation, mut size) = (0, None, None);
    loop {
        let Some(&first) = bytes.get(at) else { return Err(cut("JPEG")) };
        if first != 0xff {
            return Err(broken("the JPEG's segments do not fit together"));
        }
        let Some(&mark) = bytes.get(at + 1) else { return Err(cut("JPEG")) };
        if mark == 0xff {
            at += 1;
            continue;
        }
        if matches!(mark, 0x01 | 0xd0..=0xd7) {
            at += 2;
            continue;
        }
        let Some(length) = be16(bytes, at + 2).map(|length| length as usize) else { return Err(cut("JPEG")) };
        let Some(data) = bytes.get(at + 4..at + 2 + length) else { return Err(cut("JPEG")) };
        match mark {
            0xc0..=0xcf if !matches!(mark, 0xc4 | 0xc8 | 0xcc) => {
                let (Some(height), Some(width)) = (be16(data, 1), be16(data, 3)) else { return Err(cut("JPEG")) };
                size = Some((width, height));
            }
            0xe1 if data.starts_with(b"Exif\0\0") && orientation.is_none() => orientation = exif(&data[6..]),
            0xda => break,
            0xd9 => return Err(cut("JPEG")),
            _ => {}
        }
        at += 2 + length;
    }
    let Some((width, height)) = size else { return Err(broken("the JPEG does not say its size")) };
    if memchr::memmem::rfind(&bytes[at..], &[0xff, 0xd9]).is_none() {
        return Err(cut("JPEG"));
    }
    Ok(Header { format: Format::Jpeg, width, height, orientation: orientation.unwrap_or(1) })
}

/// Blocks to the end, frames among them.
fn gif(bytes: &[u8]) -> Result<Header, RowError> {
    let (Some(width), Some(height), Some(&flags)) = (le16(bytes, 0), le16(bytes, 2), bytes.get(4)) else {
        return Err(cut("GIF"));
    };
    let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let (mut at, mut frames) = (7 + colours(flags), 0);
    loop {
        let Some(&kind) = bytes.get(at) else { return Err(cut("GIF")) };
        at += match kind {
            0x3b if frames == 1 => return Ok(Header { format: Format::Gif, width, height, orientation: 1 }),
            0x3b => return Err(broken("the GIF has no frame")),
            0x21 => 2,
            0x2c => {
                frames += 1;
                if frames > 1 {
                    return Err(several("GIF"));
                }
                let Some(&flags) = bytes.get(at + 9) else { return Err(cut("GIF")) };
                11 + colours(flags)
            }
            _ => return Err(broken("the GIF's blocks do not fit together")),
        };
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
}

/// RIFF chunks: name, length, data, even.
fn webp(bytes: &[u8]) -> Result<Header, RowError> {
    let (mut at, mut orientation, mut size) = (0, 1, None);
    while at + 8 <= bytes.len() {
        let name = &bytes[at..at + 4];
        let length = le32(bytes, at + 4).unwrap_or_default() as usize;
        let Some(data) = bytes.get(at + 8..).and_then(|rest| rest.get(..length)) else { return Err(cut("WebP")) };
        match name {
            b"VP8 " if size.is_none() => {
                let (Some(width), Some(height)) = (le16(data, 6), le16(data, 8)) else { return Err(cut("WebP")) };
                size = Some((width & 0x3fff, height & 0x3fff));
            }
            b"VP8L" if size.is_none() => {
                let Some(bits) = le32(data, 1) else { return Err(cut("WebP")) };
                size = Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1));
            }
            b"VP8X" => {
                let (Some(low), Some(high)) = (le32(data, 4), le32(data, 6)) else { return Err(cut("WebP")) };
                size = Some(((low & 0xff_ffff) + 1, (high >> 8) + 1));
            }
            b"ANIM" => return Err(several("WebP")),
            b"EXIF" => orientation = exif(data.strip_prefix(b"Exif\0\0").unwrap_or(data)).unwrap_or(1),
            _ => {}
        }
        at += 8 + length + (length & 1);
    }
    let Some((width, height)) = size else { return Err(broken("the WebP does not say its size")) };
    Ok(Header { format: Format::Webp, width, height, orientation })
}

fn bmp(bytes: &[u8]) -> Result<Header, RowError> {
    let size = if le32(bytes, 14) == Some(12) {
        le16(bytes, 18).zip(le16(bytes, 20)).map(|(width, height)| (width as i32, height as i32))
    } else {
        le32(bytes, 18).zip(le32(bytes, 22)).map(|(width, height)| (width as i32, height as i32))
    };
    let (Some((width, height)), Some(start), Some(bits)) = (size, le32(bytes, 10), le16(bytes, 28)) else {
        return Err(cut("BMP"));
    };
    let (width, height) = (width.unsigned_abs(), height.unsigned_abs());
    let row_bytes = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
    let is_plain = le32(bytes, 14) == Some(12) || matches!(le32(bytes, 30), Some(0 | 3 | 6));
    if is_plain && (bytes.len() as u64) < u64::from(start) + row_bytes * u64::from(height) {
        return Err(cut("BMP"));
    }
    Ok(Header { format: Format::Bmp, width, height, orientation: 1 })
}

/// The orientation in the first directory of EXIF data.
fn exif(tiff: &[u8]) -> Option<u8> {
    type Read = fn(&[u8], usize) -> Option<u32>;
    let (short, long): (Read, Read) = match tiff.get(..4)? {
        b"II*\0" => (le16, le32),
        b"MM\0*" => (be16, be32),
        _ => return None,
    };
    let directory = long(tiff, 4)? as usize;
    (0..short(tiff, directory)? as usize).find_map(|entry| {
        let at = directory + 2 + 12 * entry;
        if short(tiff, at)? != 0x0112 {
            return None;
        }
        u8::try_from(short(tiff, at + 8)?).ok().filter(|value| (1..=8).contains(value))
    })
}
