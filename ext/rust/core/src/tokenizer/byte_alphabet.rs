//! The characters that stand for bytes in the names of byte-level tokens (GPT-2's `bytes_to_unicode`,
//! <https://github.com/openai/gpt-2/blob/master/src/encoder.py>).

/// The byte of each character, or 256.
const BYTE_OF: [u16; 0x144] = {
    let mut table = [256; 0x144];
    let (mut byte, mut shifted) = (0, 0x100);
    while byte < 256 {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[byte] = byte as u16;
        } else {
            table[shifted] = byte as u16;
            shifted += 1;
        }
        byte += 1;
    }
    table
};

/// The byte that a code point stands for.
#[inline]
pub(super) fn byte_at(code: usize) -> Option<u8> {
    BYTE_OF.get(code).filter(|byte| **byte < 256).map(|byte| *byte as u8)
}

/// The byte that a character stands for.
pub(super) fn byte_of(c: char) -> Option<u8> {
    byte_at(c as usize)
}

/// Appends the bytes of a byte-level token; `false`, and nothing appended, if it is none.
pub(super) fn decode(token: &str, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    for c in token.chars() {
        let Some(byte) = byte_of(c) else {
            out.truncate(before);
            return false;
        };
        out.push(byte);
    }
    !token.is_empty()
}

/// The bytes of a byte-level token.
pub(super) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    decode(token, &mut bytes).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stand_for_every_byte_once() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(byte_at).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of(' ')), (Some(b' '), Some(b'\n'), None));
    }
}
