# The reward server. Not root, nothing written but /tmp, health by the canary.
#
#   docker build -t finpercep -t finpercep:0.1.0 .                       # torch as the registry has it: CUDA, runs on CPUs too
#   docker build -t finpercep:cpu --build-arg TORCH_INDEX=ADDRESS .      # wheels of another index, CPU-only ones for one
#   docker build -t finpercep:0.1.0-cluster --build-arg EXTRAS=server,cluster .   # with Ray, for deploy/kubernetes/rayservice.yaml
#   docker run -p 8000:8000 -e FINPERCEP_TOKEN=… -v ./ladders:/models:ro finpercep
#   docker run --gpus all -p 8000:8000 -e FINPERCEP_TOKEN=… -e FINPERCEP_DEVICE=cuda finpercep
#
# It serves the packaged ladder unless FINPERCEP_MODEL says /models/NAME. A token is required: the container listens on all addresses.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=""
ARG EXTRAS=server
WORKDIR /src
RUN python -m venv /opt/finpercep
ENV PATH=/opt/finpercep/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY data_synth data_synth
COPY finpercep finpercep
COPY rm_server rm_server
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/finpercep /opt/finpercep
ENV PATH=/opt/finpercep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    FINPERCEP_HOST=0.0.0.0 \
    FINPERCEP_PORT=8000 \
    FINPERCEP_MODEL_ROOT=/models
# A login shell, which KubeRay may start Ray with, forgets PATH.
# hadolint ignore=SC2016
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin finpercep \
    && mkdir /models \
    && echo 'PATH=/opt/finpercep/bin:$PATH' >/etc/profile.d/finpercep.sh
VOLUME /models
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['FINPERCEP_PORT']}/readyz\", timeout=8)"]
ENTRYPOINT ["finpercep"]
CMD ["serve"]
