//! Text that a controller wrote.

/// The text of an ASCII field: without the padding, and nothing that a terminal would act on.
#[must_use]
pub fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = field[..end].iter().map(|&byte| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    });
    text.collect::<String>().trim().to_owned()
}
