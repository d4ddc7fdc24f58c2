# For CPUs:        docker build -t densepath .
# For NVIDIA GPUs: docker build -t densepath --build-arg TORCH_INDEX=https://pypi.org/simple .
# docs/getting_started.md has the commands to run it.
FROM python:3.13-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11" "torchvision>=0.26"
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
# Caches of any user (docker run --user) lie here.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["densepath"]
