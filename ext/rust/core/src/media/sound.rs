//! What the header of a sound says: how long it is, how many samples a second, and whether its last bytes are there.
use super::header::le32;
use crate::error::RowError;

/// Length and form of a sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sound {
    /// Samples of each channel.
    pub(crate) samples: u32,
    /// Samples a second.
    pub(crate) rate: u32,
    /// Channels.
    pub(crate) channels: u16,
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Read the header of a WAV file.
///
/// # Errors
/// [`RowError`]: `media_broken` for bytes that are no sound, `media_truncated` for one without its end, `media_empty` for
/// one without samples, `media_format` for other forms than WAV with plain samples.
pub(crate) fn read(bytes: &[u8]) -> Result<Sound, RowError> {
    let rest = match bytes {
        [] => return Err(RowError::new("media_empty", "the file is empty; get it again or leave it out")),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', rest @ ..] => rest,
        [b'f', b'L', b'a', b'C', ..] => return Err(other("FLAC")),
        [b'O', b'g', b'g', b'S', ..] => return Err(other("Ogg")),
        [b'I', b'D', b'3', ..] | [0xff, 0xfb | 0xfa | 0xf3 | 0xf2, ..] => return Err(other("MP3")),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => return Err(other("MP4")),
        [b'R', b'F' | b'I', b'6' | b'F', b'4' | b'X', ..] => return Err(other("RF64")),
        _ => return Err(RowError::new("media_broken", "not a sound in WAV form; get it again or leave it out")),
    };
    wav(rest)
}

fn other(form: &str) -> RowError {
    let message = format!("a sound in {form} form is not read; convert it: ffmpeg -i FILE FILE.wav");
    RowError::new("media_format", message)
}

fn cut() -> RowError {
    RowError::new("media_truncated", "the WAV ends too early, as a download that broke off does; get it again")
}

/// Chunks: name, length, data, even.
fn wav(bytes: &[u8]) -> Result<Sound, RowError> {
    let (mut at, mut form) = (0, None);
    loop {
        let Some(name) = bytes.get(at..at + 4) else { return Err(cut()) };
        let Some(length) = le32(bytes, at + 4).map(|length| length as usize) else { return Err(cut()) };
        if name == b"data" && length == u32::MAX as usize {
            return Err(RowError::new(
                "media_format",
                "the WAV does not say its length; convert it: ffmpeg -i FILE FILE.wav",
            ));
        }
        let Some(data) = bytes.get(at + 8..).and_then(|rest| rest.get(..length)) else { return Err(cut()) };
        match name {
            b"fmt " => form = Some(format(data)?),
            b"data" => {
                let Some((rate, channels, block)) = form else {
                    return Err(RowError::new("media_broken", "the WAV has samples before their form; get it again"));
                };
                let samples = (length / block) as u32;
                if samples == 0 {
                    return Err(RowError::new("media_empty", "the WAV has no samples; leave it out"));
                }
                return Ok(Sound { samples, rate, channels });
            }
            _ => {}
        }
        at += 8 + length + (length & 1);
    }
}

/// Samples a second, channels, bytes of all channels' samples.
fn format(data: &[u8]) -> Result<(u32, u16, usize), RowError> {
    let (Some(tag), Some(channels), Some(rate), Some(block), Some(bits)) =
        (le16(data, 0), le16(data, 2), le32(data, 4), le16(data, 12), le16(data, 14))
    else {
        return Err(cut());
    };
    // an extensible form has the plain tag behind it
    let tag = if tag == 0xfffe { le16(data, 24).unwrap_or_default() } else { tag };
    if !matches!((tag, bits), (1, 8 | 16 | 24 | 32) | (3, 32 | 64)) {
        let message =
            format!("the WAV has samples of form {tag} with {bits} bits; convert it: ffmpeg -i FILE FILE.wav");
        return Err(RowError::new("media_format", message));
    }
    let fits = usize::from(block) == usize::from(channels) * usize::from(bits / 8);
    if channels == 0 || !fits || !(1_000..=768_000).contains(&rate) {
        let message = format!("the WAV says {channels} channels, {rate} samples a second, {block} bytes each");
        return Err(RowError::new("media_broken", format!("{message}; get it again or leave it out")));
    }
    Ok((rate, channels, usize::from(block)))
}

#[cfg(test)]
mod tests {
    use super::{Sound, read};

    fn wav(tag: u16, channels: u16, bits: u16, data: &[u8], said: u32) -> Vec<u8> {
        let block = channels * bits / 8;
        let mut out = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        for value in [tag, channels] {
            out.extend(value.to_le_bytes());
        }
        out.extend(16_000_u32.to_le_bytes());
        out.extend((16_000 * u32::from(block)).to_le_bytes());
        for value in [block, bits] {
            out.extend(value.to_le_bytes());
        }
        out.extend(b"LIST\x03\0\0\0abc\0data");
        out.extend(said.to_le_bytes());
        out.extend(data);
        out
    }

    #[test]
    fn length_is_that_of_one_channel() {
        let sound = read(&wav(1, 2, 16, &[0; 40], 40)).ok();
        assert_eq!(sound, Some(Sound { samples: 10, rate: 16_000, channels: 2 }));
        assert_eq!(read(&wav(3, 1, 32, &[0; 40], 40)).map(|sound| sound.samples), Ok(10));
    }

    #[test]
    fn damage_has_its_reason() {
        let reason = |bytes: &[u8]| read(bytes).err().map(|fault| fault.reason);
        assert_eq!(reason(b""), Some("media_empty"));
        assert_eq!(reason(b"hello"), Some("media_broken"));
        assert_eq!(reason(&wav(1, 1, 16, &[0; 40], 41)), Some("media_truncated"));
        assert_eq!(reason(&wav(1, 1, 16, &[0; 40], u32::MAX)), Some("media_format"));
        assert_eq!(reason(&wav(1, 1, 16, &[], 0)), Some("media_empty"));
        assert_eq!(reason(&wav(7, 1, 8, &[0; 40], 40)), Some("media_format"));
        assert_eq!(reason(&wav(1, 0, 16, &[0; 40], 40)), Some("media_broken"));
        assert_eq!(reason(b"fLaC...."), Some("media_format"));
        let whole = wav(1, 1, 16, &[0; 40], 40);
        for end in 12..whole.len() {
            assert_eq!(reason(&whole[..end]), Some("media_truncated"), "{end}");
        }
    }
}
