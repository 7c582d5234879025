FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY Makefile requirements.txt ./
RUN make setup
COPY . .

# MONAI Label makes folders beside the app.
RUN useradd --create-home ibis \
    && mkdir -p bin logs model out weights /home/ibis/.cache \
    && chown ibis . bin logs model out weights /home/ibis/.cache
USER ibis
ENV OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["/app/.venv/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/info/', timeout=4)"]
ENTRYPOINT ["/app/.venv/bin/python", "main.py"]
CMD ["--help"]
