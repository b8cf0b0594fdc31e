from .diffusers import NullTextPipeline as NullTextPipeline
from .diffusers import NullTextPipelineOutput as NullTextPipelineOutput
