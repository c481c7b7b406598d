"""The tool that searches collections of documents, and its ways of retrieval. Fields as in xAI's protocol."""

from typing import Literal, Self

from pydantic import Field, model_validator

from promptq.producer.fields import Frozen, Text, Texts


class Reranker(Frozen):
    """The model that ranks what was found."""

    model: Text | None = None
    instructions: Text | None = None


class RankFusion(Frozen):
    """Ranks by both searches, each with its weight."""

    k: int | None = None
    embedding_weight: float | None = None
    text_weight: float | None = None


class HybridRetrieval(Frozen):
    """By meaning and by words."""

    search_multiplier: int | None = None
    reranker_model: Reranker | None = None
    reciprocal_rank_fusion: RankFusion | None = None

    @model_validator(mode="after")
    def _ranks_one_way(self) -> Self:
        if self.reranker_model and self.reciprocal_rank_fusion:
            raise ValueError("give reranker_model or reciprocal_rank_fusion, not both")
        return self


class OneWayRetrieval(Frozen):
    """By meaning (semantic) or by words (keyword) alone."""

    reranker: Reranker | None = None


class CollectionsSearch(Frozen):
    """Searches collections of documents. One way of retrieval: by name, or by its own object for details."""

    type: Literal["collections_search"]
    collection_ids: Texts = Field(min_length=1, max_length=10)
    limit: int | None = Field(None, ge=1)
    instructions: Text | None = None
    retrieval_mode: Literal["hybrid", "semantic", "keyword"] | None = None
    hybrid_retrieval: HybridRetrieval | None = None
    semantic_retrieval: OneWayRetrieval | None = None
    keyword_retrieval: OneWayRetrieval | None = None

    @model_validator(mode="after")
    def _retrieves_one_way(self) -> Self:
        ways = (self.retrieval_mode, self.hybrid_retrieval, self.semantic_retrieval, self.keyword_retrieval)
        if sum(way is not None for way in ways) > 1:
            raise ValueError("give one way of retrieval")
        return self
