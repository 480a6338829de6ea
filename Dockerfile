# stillframe as a command. Two targets:
#   docker build --target cpu -t stillframe --build-arg TORCH_INDEX=INDEX-OF-CPU-BUILDS .
#   docker build --target cuda -t stillframe:cuda .
# The versions are those of constraints.txt; docs/install.md says how to run it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# of torch's own index of CPU builds; without it torch comes from the usual index, with CUDA
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /opt/stillframe
ENV PATH=/opt/stillframe/bin:$PATH
COPY constraints.txt ./
# torch in a layer of its own, which a change of the sources leaves as it is; it brings its own triton
RUN grep '^torch==' constraints.txt > torch.txt && grep -v '^triton==' constraints.txt > others.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint others.txt ".[serve,webrtc]"

FROM python:${PYTHON}-slim AS cpu
RUN useradd --uid 1000 --create-home stillframe && mkdir /work && chown stillframe /work
COPY --from=build /opt/stillframe /opt/stillframe
ENV PATH=/opt/stillframe/bin:$PATH
USER 1000
WORKDIR /work
EXPOSE 7860
ENTRYPOINT ["stillframe"]
CMD ["--help"]

FROM cpu AS cuda
USER 0
# Triton compiles what launches its kernels; Debian keeps no older versions to be named here
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 1000
