from .content.prepare import prepare_content
from .data.datamodule import TwoTowerData
from .data.sources.folder import FolderSource
from .data.splits import ColdItems, Given, LeaveLastOut, Random, Temporal
from .data.tables import Catalogue
from .errors import UserError
from .evaluation.evaluator import evaluate
from .evaluation.metrics import METRICS
from .evaluation.ranking import EmbeddingScorer, top_k
from .evaluation.results import Result
from .export.item_tower import ExportedItemTower, export_item_tower, load_item_tower
from .export.user_tower import ExportedUserTower, export_user_tower, load_user_tower
from .objectives.bpr import BPR
from .objectives.in_batch_sigmoid import InBatchSigmoid
from .objectives.log_sigmoid import LogSigmoid
from .objectives.sampled_softmax import SampledSoftmax
from .retrieval.index import Index
from .towers.encoders.audio import AudioEncoder
from .towers.encoders.base import Encoder
from .towers.encoders.identity import IdentityEncoder
from .towers.encoders.text import TextEncoder
from .towers.encoders.vision import VisionEncoder
from .towers.fusion import AttentionFusion, ConcatFusion, Fusion, GatedFusion, MeanFusion
from .towers.history import HistoryAttention
from .towers.item_tower import ItemTower
from .towers.ncf import NCF
from .towers.score import Score
from .towers.user_tower import UserColumns, UserTower, UserTowerBase
from .training.module import TwoTowerModule
from .training.optim import adamw, warmup_cosine

__version__: str

__all__ = [
    "AttentionFusion",
    "AudioEncoder",
    "BPR",
    "Catalogue",
    "ColdItems",
    "ConcatFusion",
    "EmbeddingScorer",
    "Encoder",
    "ExportedItemTower",
    "ExportedUserTower",
    "FolderSource",
    "Fusion",
    "GatedFusion",
    "Given",
    "HistoryAttention",
    "IdentityEncoder",
    "InBatchSigmoid",
    "Index",
    "ItemTower",
    "LeaveLastOut",
    "LogSigmoid",
    "METRICS",
    "MeanFusion",
    "NCF",
    "Random",
    "Result",
    "SampledSoftmax",
    "Score",
    "Temporal",
    "TextEncoder",
    "TwoTowerData",
    "TwoTowerModule",
    "UserColumns",
    "UserError",
    "UserTower",
    "UserTowerBase",
    "VisionEncoder",
    "adamw",
    "evaluate",
    "export_item_tower",
    "export_user_tower",
    "load_item_tower",
    "load_user_tower",
    "prepare_content",
    "top_k",
    "warmup_cosine",
]
