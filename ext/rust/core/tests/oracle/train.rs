//! Small tokenizers with real pre-tokenizers, trained when asked for.

use std::sync::LazyLock;

use super::words;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

/// Rust, and the words of several scripts: enough for merges inside and across characters.
pub static CORPUS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let source =
        include_str!("../../src/tokenizer/bpe/merge.rs").to_owned() + include_str!("../../src/tokenizer/bpe/scan.rs");
    let prose = "We're here, it's 12345 o'clock; DON'T panic! naïve café Straße über ﬁn\u{301} ǅ ʰ x² ½ ١٢٣\n\t\n  \r\n中文分词是自然语言处理的基础。\
        日本語の文章をトークンに分けます。한국어 문장도 있습니다. Привет, мир! Ελληνικά שלום مرحبا हिन्दी में पाठ 👩‍👩‍👧 🇩🇪 e\u{301}a\u{30a}\u{327} \
        <div class=\"a\">&amp;</div> https://example.org/a/b?c=d#e $x^2$ \\alpha 中国人民 中国 人民 的 了 在 是 我 有 和 就 不 人 都 一 一个";
    let mut lines: Vec<String> = source.lines().map(|line| format!("{line}\n")).collect();
    lines.extend((0..40).map(|i| prose.split_inclusive(' ').cycle().skip(i * 7).take(60 + i).collect()));
    lines
});

/// A `tokenizer.json` with these pre-tokenizer steps, trained on [`CORPUS`].
pub fn train(steps: &[&str], vocab_size: usize) -> Value {
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(words::pre_tokenizer(steps)).unwrap();
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(None)
            .with_pre_tokenizer(Some(pre_tokenizer))
            .with_post_processor(None)
            .with_decoder(None)
            .build()
            .unwrap();
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(1)
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, CORPUS.iter()).unwrap();
    serde_json::to_value(&tokenizer).unwrap()
}
