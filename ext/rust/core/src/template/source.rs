//! Whose words a text holds, as a number: that of a message (one more than its index), with flags. 0: nobody's.

/// Set in the number of a message that is the model's: only of its words it matters where they are printed.
pub(super) const FROM_ASSISTANT: u32 = 1 << 31;

/// Set in the number of a message whose reasoning is meant, not its content.
pub(super) const REASONING: u32 = 1 << 30;

/// Set in the number of a text that was joined of words of two: a part of it need not hold both.
pub(super) const MIXED: u32 = 1 << 29;

/// A member of this name stands for what a message says.
pub(super) fn is_said(name: &str) -> bool {
    matches!(name, "content" | "reasoning_content" | "thinking" | "reasoning")
}

/// Whose words the member `key` of the message numbered `message` holds; 0: nobody's.
pub(super) fn source_of(key: &str, message: u32) -> u32 {
    match message {
        0 => 0,
        _ if key == "content" => message,
        _ if is_said(key) => message | REASONING,
        _ => 0,
    }
}

/// One source for text made of two: the model's words before others, the left before the right.
pub(super) fn joint_source(left: u32, right: u32) -> u32 {
    let first = if left & FROM_ASSISTANT == 0 && right & FROM_ASSISTANT != 0 { right } else { left };
    let first = if first == 0 { right } else { first };
    let is_mixed = left != 0 && right != 0 && (left ^ right) & !MIXED != 0;
    first | if is_mixed { MIXED } else { (left | right) & MIXED }
}

/// The index of the message with this number (one more, perhaps with flags); none for 0.
pub(super) fn message_index(number: u32) -> Option<usize> {
    (number & !(FROM_ASSISTANT | REASONING | MIXED)).checked_sub(1).map(|index| index as usize)
}
