{{/* Labels of everything. */}}
{{- define "tradewind.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "tradewind.selector" . }}
{{- end }}

{{/* Labels by which the agents are found. A DaemonSet's cannot be changed later. */}}
{{- define "tradewind.selector" -}}
app.kubernetes.io/name: tradewind
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end }}

{{/* Name of what belongs to the whole cluster: one for each namespace that has Tradewind. */}}
{{- define "tradewind.clusterName" -}}
tradewind-{{ .Release.Namespace }}
{{- end }}

{{- define "tradewind.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "tradewind.socketHostPath" -}}
{{ .Values.socketHostPath | default (printf "/run/tradewind/%s" .Release.Namespace) }}
{{- end }}
