//! Names that templates call things by: filters, tests, and the attributes that Python's types have of themselves.
use super::ast::CompareOp;

/// What follows `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Abs,
    Attr,
    Batch,
    Capitalize,
    Center,
    Default,
    DictSort,
    /// whatever it is, or only what is not |safe
    Escape(bool),
    First,
    Float,
    Format,
    GroupBy,
    Indent,
    Int,
    Items,
    Join,
    Last,
    Length,
    List,
    Lower,
    Map,
    Max,
    Min,
    PrettyPrint,
    Replace,
    Reverse,
    Round,
    Safe,
    /// keep what passes, by an attribute
    Select(bool, bool),
    Slice,
    Sort,
    String,
    Sum,
    Title,
    ToJson,
    Trim,
    Truncate,
    Unique,
    Upper,
    UrlEncode,
    WordCount,
    WordWrap,
}

impl Filter {
    /// The filter called `name`, if it is supported.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "abs" => Self::Abs,
            "attr" => Self::Attr,
            "batch" => Self::Batch,
            "capitalize" => Self::Capitalize,
            "center" => Self::Center,
            "d" | "default" => Self::Default,
            "dictsort" => Self::DictSort,
            "e" | "escape" => Self::Escape(false),
            "forceescape" => Self::Escape(true),
            "first" => Self::First,
            "float" => Self::Float,
            "format" => Self::Format,
            "groupby" => Self::GroupBy,
            "indent" => Self::Indent,
            "int" => Self::Int,
            "items" => Self::Items,
            "join" => Self::Join,
            "last" => Self::Last,
            "count" | "length" => Self::Length,
            "list" => Self::List,
            "lower" => Self::Lower,
            "map" => Self::Map,
            "max" => Self::Max,
            "min" => Self::Min,
            "pprint" => Self::PrettyPrint,
            "reject" => Self::Select(false, false),
            "rejectattr" => Self::Select(false, true),
            "replace" => Self::Replace,
            "reverse" => Self::Reverse,
            "round" => Self::Round,
            "safe" => Self::Safe,
            "select" => Self::Select(true, false),
            "selectattr" => Self::Select(true, true),
            "slice" => Self::Slice,
            "sort" => Self::Sort,
            "string" => Self::String,
            "sum" => Self::Sum,
            "title" => Self::Title,
            "tojson" => Self::ToJson,
            "trim" => Self::Trim,
            "truncate" => Self::Truncate,
            "unique" => Self::Unique,
            "upper" => Self::Upper,
            "urlencode" => Self::UrlEncode,
            "wordcount" => Self::WordCount,
            "wordwrap" => Self::WordWrap,
            _ => return None,
        })
    }

    /// Filters that take a |safe string as the plain text it is.
    pub(super) fn takes_markup(self) -> bool {
        matches!(
            self,
            Self::Default | Self::Escape(_) | Self::Length | Self::Safe | Self::String | Self::ToJson | Self::Trim
        )
    }
}

/// What follows `is`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Defined,
    Undefined,
    None,
    Boolean,
    True,
    False,
    Integer,
    Float,
    Number,
    String,
    Mapping,
    Iterable,
    Sequence,
    Callable,
    Odd,
    Even,
    DivisibleBy,
    SameAs,
    /// All letters are upper (true) or lower.
    Case(bool),
    Compare(CompareOp),
}

impl Test {
    /// The test called `name`, if it is supported.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "defined" => Self::Defined,
            "undefined" => Self::Undefined,
            "none" => Self::None,
            "boolean" => Self::Boolean,
            "true" => Self::True,
            "false" => Self::False,
            "integer" => Self::Integer,
            "float" => Self::Float,
            "number" => Self::Number,
            "string" => Self::String,
            "mapping" => Self::Mapping,
            "iterable" => Self::Iterable,
            "sequence" => Self::Sequence,
            "callable" => Self::Callable,
            "odd" => Self::Odd,
            "even" => Self::Even,
            "divisibleby" => Self::DivisibleBy,
            "sameas" => Self::SameAs,
            "upper" => Self::Case(true),
            "lower" => Self::Case(false),
            "eq" | "equalto" | "==" => Self::Compare(CompareOp::Eq),
            "ne" | "!=" => Self::Compare(CompareOp::Ne),
            "lt" | "lessthan" | "<" => Self::Compare(CompareOp::Lt),
            "le" | "<=" => Self::Compare(CompareOp::Le),
            "gt" | "greaterthan" | ">" => Self::Compare(CompareOp::Gt),
            "ge" | ">=" => Self::Compare(CompareOp::Ge),
            "in" => Self::Compare(CompareOp::In),
            _ => return None,
        })
    }
}

/// Public attributes of `str`: those not implemented are an error, never Undefined.
const STR_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
const LIST_METHODS: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
const INT_ATTRIBUTES: [&str; 9] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
];
const FLOAT_ATTRIBUTES: [&str; 7] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];

/// The types that have an attribute of some name, before any key of the same name: a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owners(u16);

impl Owners {
    pub(super) fn of(name: &str) -> Self {
        let owners = [
            STR_METHODS.contains(&name),
            DICT_METHODS.contains(&name),
            LIST_METHODS.contains(&name),
            matches!(name, "count" | "index"),
            matches!(name, "count" | "index" | "start" | "step" | "stop"),
            INT_ATTRIBUTES.contains(&name),
            FLOAT_ATTRIBUTES.contains(&name),
            matches!(name, "isdisjoint" | "mapping"),
            matches!(name, "close" | "send" | "throw") || name.starts_with("gi_"),
        ];
        Self((0..).zip(owners).map(|(bit, owns)| u16::from(owns) << bit).sum())
    }

    /// Python finds the attribute on a dict itself.
    pub(super) fn include_mappings(self) -> bool {
        self.has(1)
    }

    /// The type with this bit has the attribute.
    #[inline]
    pub(super) fn has(self, bit: u8) -> bool {
        self.0 >> bit & 1 == 1
    }
}
