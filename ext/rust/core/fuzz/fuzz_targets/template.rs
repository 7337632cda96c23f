//! Chat templates: any source and any row end in a text or an error, within the limits of the template. The first byte
//! says whether the others are the source as it is, or stand for pieces of one: values, filters, tests and methods with
//! arguments, which raw bytes would rarely spell.
#![no_main]

#[path = "../src/template_source.rs"]
mod template_source;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| template_source::try_source(&template_source::source_of(data)));
