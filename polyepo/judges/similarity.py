"""Judges that compare texts without a language model: they cost next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from pydantic import Field

from polyepo.domains import Domain
from polyepo.errors import ConfigError
from polyepo.extras import require
from polyepo.judges.base import CallLog, Group, Judge, Label
from polyepo.labels import LabelStatus

_NEEDS_PACKAGE = (
    "judge.name embedding needs sentence-transformers: pip install 'poly-epo[embedding]', or take name: text"
)


class _SimilarityJudge(Judge):
    """Average-linkage clusters of texts whose vectors' cosine distance is small; empty responses are degenerate."""

    max_distance: float = Field(0.3, gt=0, le=2)
    """Mean cosine distance above which two clusters stay apart."""

    @property
    def judge_id(self) -> str:
        """The judge's name and its distance."""
        return f"{self.name}-{self.max_distance:g}"

    def label(self, domain: Domain, groups: Sequence[Group], calls: CallLog | None = None) -> list[list[Label]]:
        """Exactly one label per response, in the responses' order, for each group."""
        return [self._label_group(group.responses) for group in groups]

    def _label_group(self, responses: Sequence[str]) -> list[Label]:
        # Equal texts share a cluster whatever their vectors are.
        texts = list(dict.fromkeys(text for text in responses if text.strip()))
        found = agglomerate(self._vectors(texts), self.max_distance) if len(texts) > 1 else [0] * len(texts)
        cluster_of = dict(zip(texts, found, strict=True))
        numbers: dict[int, int] = {}
        return [
            Label(numbers.setdefault(cluster_of[text], len(numbers)), False, None, None, LabelStatus.OK)
            if text in cluster_of
            else Label(None, True, None, None, LabelStatus.OK)
            for text in responses
        ]

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (T, D); zero for a text that has none."""
        raise NotImplementedError


class TextJudge(_SimilarityJudge):
    """Clusters by TF-IDF of character n-grams within words, over one prompt's responses."""

    name: Literal["text"] = "text"

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        require("judge", "sklearn")
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
        return np.asarray(vectorizer.fit_transform(texts).toarray())


class EmbeddingJudge(_SimilarityJudge):
    """Clusters by sentence embeddings; needs the package sentence-transformers (extra `embedding`)."""

    name: Literal["embedding"] = "embedding"
    model: str = Field(min_length=1)
    """A sentence-transformers model: a directory or hub id."""

    @property
    def judge_id(self) -> str:
        """The judge's name, its model's name and its distance."""
        # No slug: labels that are there keep the id that they have.
        model = "".join(c if c.isalnum() else "-" for c in self.model.lower()).strip("-")[-60:].strip("-")
        return f"{self.name}-{model}-{self.max_distance:g}"

    def check_ready(self) -> None:
        """Raise ConfigError if sentence-transformers is not installed."""
        if find_spec("sentence_transformers") is None:
            raise ConfigError(_NEEDS_PACKAGE)

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(_encoder(self.model).encode(list(texts), normalize_embeddings=True))


def agglomerate(vectors_TD: np.ndarray, max_distance: float) -> list[int]:
    """Clusters of T >= 2 vectors by average linkage of cosine distances; a zero vector is far from every other."""
    require("judge", "sklearn")
    from sklearn.cluster import AgglomerativeClustering

    norms_T1 = np.linalg.norm(vectors_TD, axis=1, keepdims=True)
    units_TD = vectors_TD / np.where(norms_T1 == 0, 1, norms_T1)
    distances_TT = np.clip(1 - units_TD @ units_TD.T, 0, 2)
    np.fill_diagonal(distances_TT, 0)
    clustering = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=max_distance
    )
    return [int(cluster) for cluster in clustering.fit_predict(distances_TT)]


@lru_cache(maxsize=1)
def _encoder(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(_NEEDS_PACKAGE) from None
    return SentenceTransformer(model)
