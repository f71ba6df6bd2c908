"""Params of the registry: where models are registered, under which name, and how strict about git."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from plumbline.data_contracts.secrets import has_password
from plumbline.tasks.params.section import Section

_TRACKING_URI = re.compile(
    r"\$[A-Za-z_]\w*|(https?|sqlite|(postgresql|mysql|mssql)(\+\w+)?)://\S+|databricks(-uc)?(://\S+)?"
)


class SigningParams(Section):
    """How the files of a version are signed; model-signing's own methods.

    The version's seal and the promotion ledger are signed by `registry.signing_key` in every case.
    """

    method: Literal["key", "pkcs11", "certificate", "sigstore"] = Field(
        default="key",
        description="key: registry.signing_key. pkcs11: a key in a hardware token, whose public half "
        "`plumbline keys add` makes known (needs model-signing[pkcs11]). certificate: registry.signing_key with its "
        "X.509 certificate. sigstore: keyless, by an OpenID identity; needs the network, to verify too.",
    )
    pkcs11_uri: str | None = Field(
        default=None,
        description="pkcs11: the key, as pkcs11:token=…;object=…?module-name=…&pin-source=… (RFC 7512; the PIN in a "
        "file, not here).",
    )
    pkcs11_modules: tuple[str, ...] = Field(
        default=(), description="pkcs11: folders of modules, beside the usual ones."
    )
    certificate: str | None = Field(
        default=None, description="certificate: path of the X.509 certificate of registry.signing_key, as PEM."
    )
    certificate_chain: tuple[str, ...] = Field(
        default=(), description="certificate: paths of the certificates above it, as PEM; the last is the root."
    )
    identity: str | None = Field(default=None, description="sigstore: who must have signed, as an e-mail or a URI.")
    oidc_issuer: str | None = Field(default=None, description="sigstore: URL of the provider that knows the identity.")
    ambient_credentials: bool = Field(
        default=True, description="sigstore: sign as the CI job or workload; false: ask a person, in a browser."
    )

    @model_validator(mode="after")
    def _has_what_its_method_needs(self) -> SigningParams:
        needs = {"pkcs11": ("pkcs11_uri",), "certificate": ("certificate", "certificate_chain")}
        needs["sigstore"] = ("identity", "oidc_issuer")
        missing = [name for name in needs.get(self.method, ()) if not getattr(self, name)]
        if missing:
            raise ValueError(f"method {self.method} needs {' and '.join(missing)}. Set it, or method: key")
        if self.pkcs11_uri is not None and "pin-value" in self.pkcs11_uri:
            raise ValueError(
                "expected a pkcs11_uri without pin-value, because every model's manifest keeps these params. Put the "
                "PIN into a file, and name it by pin-source"
            )
        return self


class RegistryParams(Section):
    """Where and under which name models are registered."""

    model_name: str = Field(
        default="assistant",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$",
        description="Registered name in MLflow: letters, digits, '_', '.', '-'.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow tracking and registry URI (http(s)://…, postgresql://…, sqlite:///…), or $NAME, the "
        "environment variable that holds it (the place for a password); null: SQLite and artifacts under .plumbline "
        "in the workspace.",
    )
    experiment: str = Field(default="plumbline", min_length=1, description="MLflow experiment that holds the runs.")
    on_dirty: Literal["record", "refuse"] = Field(
        default="record",
        description="Uncommitted changes in the workspace: 'record' puts the diff into the manifest, 'refuse' stops "
        "before any work.",
    )
    push: bool = Field(
        default=True, description="Push every DVC object to the default remote before a version is registered."
    )

    signing_key: str | None = Field(
        default=None,
        min_length=1,
        description="Private key (EC, P-256, PEM, mode 0600, outside the workspace) that signs versions and the "
        "promotion ledger: a path, or $NAME, the environment variable that holds the path; null: "
        "~/.config/plumbline/signing.key, made on first use. Without it one can verify, with .plumbline/signing.pub.",
    )
    signing: SigningParams = Field(
        default_factory=SigningParams, description="How the files of a version are signed: a key, a token, keyless."
    )

    @field_validator("tracking_uri")
    @classmethod
    def _is_a_store_without_a_password(cls, uri: str | None) -> str | None:
        if uri is not None and has_password(uri):
            raise ValueError(
                "expected a URI without a password, because every model's manifest keeps these params. Put the whole "
                "URI into the environment variable MLFLOW_TRACKING_URI and set this to $MLFLOW_TRACKING_URI"
            )
        if uri is not None and not _TRACKING_URI.fullmatch(uri):
            raise ValueError(
                "expected http(s)://…, sqlite:///…, postgresql://…, mysql://…, mssql://…, databricks, "
                "or $NAME of an environment variable"
            )
        return uri
