//! Parts of objects as Go's tools have them: fields that are not known are kept, fields at their default are not written.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A part of an object: `required` fields are always written, `optional` ones unless they are their type's default.
macro_rules! object {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(required { $($(#[$required_meta:meta])* $required:ident: $required_type:ty,)+ })?
            $(optional { $($(#[$optional_meta:meta])* $optional:ident: $optional_type:ty,)+ })?
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        $(#[$meta])*
        pub struct $name {
            $($($(#[$required_meta])* pub $required: $required_type,)+)?
            $($(
                $(#[$optional_meta])*
                #[serde(
                    default,
                    deserialize_with = "crate::object::nothing_is_default",
                    skip_serializing_if = "crate::object::is_default"
                )]
                pub $optional: $optional_type,
            )+)?
            /// Fields that are not known here, as they were read.
            #[serde(flatten)]
            #[schemars(skip)]
            pub other: std::collections::BTreeMap<String, serde_json::Value>,
        }
    };
}

/// One of several words. The first is the default; a word that is not known is kept.
macro_rules! word {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(#[$first_meta:meta])* $first:ident = $first_word:literal,
            $($(#[$variant_meta:meta])* $variant:ident = $variant_word:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            $(#[$first_meta])*
            #[default]
            $first,
            $($(#[$variant_meta])* $variant,)*
            /// A word of a later version.
            Other(String),
        }

        impl $name {
            /// The word that is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    Self::$first => $first_word,
                    $(Self::$variant => $variant_word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word: String = serde::Deserialize::deserialize(deserializer)?;
                Ok(match word.as_str() {
                    $first_word => Self::$first,
                    $($variant_word => Self::$variant,)*
                    _ => Self::Other(word),
                })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "enum": [$first_word, $($variant_word),*]})
            }
        }
    };
}

pub(crate) use {object, word};

/// A field that is `null` or the empty text is one that is not there.
pub(crate) fn nothing_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + DeserializeOwned,
{
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(T::default()),
        Value::String(text) if text.is_empty() => Ok(T::default()),
        value => T::deserialize(value).map_err(D::Error::custom),
    }
}

/// What need not be written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
